"""What two trials of one sample have in common: the layers before the first one whose precision differs.

A trial leaves the tensors behind that are alive at some places on its way, as many as fit into a limit. The next
one on the same sample goes on from the last of these places that both reach with the same precisions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from threading import Lock

from trt_helper.values import Array, Feed, TensorName

PLACES = 16  # on the way through a model, evenly spread over its layers
LIMIT = 1 << 26  # bytes that all ways together may hold

Keys = Sequence[Hashable]  # of each layer, all that its results depend on besides the feed and the layers before


class Way:
    """The way of one trial: its feed, its keys, and the tensors that are alive before some of its layers."""

    def __init__(self, feed: Feed, keys: Keys, alive: Mapping[int, Mapping[TensorName, Array]], limit: int) -> None:
        self.feed = feed
        self.keys = keys
        self._alive = dict(alive)
        self._limit = limit

    @property
    def size(self) -> int:
        """Bytes held besides the feed, each array once."""
        held = {id(array): array.nbytes for values in self._alive.values() for array in values.values()}
        return sum(held[one] for one in held.keys() - {id(array) for array in self.feed.values()})

    def start(self) -> tuple[int, dict[TensorName, Array]]:
        """The first layer that is to be computed, and the tensors alive before it."""
        first = max(self._alive, default=0)
        return first, {**self._alive.get(first, self.feed)}

    def pass_by(self, index: int, values: Mapping[TensorName, Array]) -> None:
        """Leave what is alive before layer `index` there, if it is one of the places."""
        if index and index not in self._alive and index % max(1, len(self.keys) // PLACES) == 0:
            self._alive[index] = {**values}
            self.shrink(self._limit)

    def shrink(self, limit: int) -> None:
        """Leave places until no more than `limit` bytes are held: those first where most is alive."""
        while self.size > limit:
            del self._alive[max(self._alive, key=lambda index: sum(a.nbytes for a in self._alive[index].values()))]

    def shared_with(self, keys: Keys) -> dict[int, Mapping[TensorName, Array]]:
        """What was left before the first layer whose key is another in `keys`."""
        pairs = enumerate(zip(self.keys, keys, strict=True))
        common = next((index for index, (a, b) in pairs if a != b), len(keys))
        return {index: values for index, values in self._alive.items() if index <= common}


class Prefixes:
    """The ways of the last trials, one per sample. Thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._ways: dict[int, tuple[Way, int]] = {}  # by the identity of the feed, with its size
        self._lock = Lock()

    def way(self, feed: Feed, keys: Keys) -> Way:
        """A new way, as far as it is known from the last trial on this very `feed`."""
        with self._lock:
            last, _ = self._ways.get(id(feed), (None, 0))  # it holds its feed, so no other can have that identity
            return Way(feed, keys, last.shared_with(keys) if last else {}, self._limit)

    def keep(self, way: Way) -> None:
        """Remember a way that was gone to its end. All together keep to the limit, each with an equal share of it."""
        with self._lock:
            self._ways[id(way.feed)] = way, way.size
            if sum(size for _, size in self._ways.values()) <= self._limit:
                return
            share = self._limit // len(self._ways)
            for known, size in self._ways.values():
                if size > share:
                    known.shrink(share)
            sized = ((key, known, known.size) for key, (known, _) in self._ways.items())
            self._ways = {key: (known, size) for key, known, size in sized if size}
