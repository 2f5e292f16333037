"""Activation checkpoints of the last trial on each sample, from which the next trial resumes.

Two trials on one sample compute the same tensors up to the first layer whose precision differs. A trial therefore
saves the tensors that are alive before some of its layers, as many as fit into a limit of bytes. The next trial on the
same sample starts from the last of these checkpoints that lies before the first difference.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from threading import Lock

from trt_helper.values import Array, Feed, TensorName

CHECKPOINTS = 16  # checkpoints per sample, evenly spread over the layers
LIMIT = 1 << 26  # bytes of the checkpoints of all samples together

# One key per layer, in topological order. Two trials on one feed compute the same values up to the first different key.
Keys = Sequence[Hashable]


class SampleCheckpoints:
    """The activation checkpoints of one trial on one sample.

    A checkpoint is the mapping from name to array of the tensors that are alive before a layer: those that this
    layer or a later one reads. It is stored under the index of that layer.
    """

    def __init__(
        self, feed: Feed, keys: Keys, checkpoints: Mapping[int, Mapping[TensorName, Array]], limit: int
    ) -> None:
        self.feed = feed
        self.keys = keys
        self._checkpoints = dict(checkpoints)
        self._limit = limit

    @property
    def size(self) -> int:
        """Bytes of all checkpoints. An array that occurs more than once counts once, and the feed does not count."""
        sizes = {id(array): array.nbytes for values in self._checkpoints.values() for array in values.values()}
        return sum(sizes[one] for one in sizes.keys() - {id(array) for array in self.feed.values()})

    def resume(self) -> tuple[int, dict[TensorName, Array]]:
        """The index of the first layer that must be computed, and the tensors that are alive before it."""
        first = max(self._checkpoints, default=0)
        return first, {**self._checkpoints.get(first, self.feed)}

    def save(self, index: int, values: Mapping[TensorName, Array]) -> None:
        """Save `values`, the tensors alive before layer `index`, if a checkpoint is due there.

        The limit may remove this checkpoint, or another one, at once.
        """
        if index and index not in self._checkpoints and index % max(1, len(self.keys) // CHECKPOINTS) == 0:
            self._checkpoints[index] = {**values}
            self.shrink(self._limit)

    def shrink(self, limit: int) -> None:
        """Remove checkpoints, the largest first, until all together have at most `limit` bytes."""

        def bytes_at(index: int) -> int:
            return sum(array.nbytes for array in self._checkpoints[index].values())

        while self.size > limit:
            del self._checkpoints[max(self._checkpoints, key=bytes_at)]

    def valid_for(self, keys: Keys) -> dict[int, Mapping[TensorName, Array]]:
        """The checkpoints that a trial with these `keys` can resume from: up to the first layer with another key."""
        pairs = enumerate(zip(self.keys, keys, strict=True))
        common = next((index for index, (a, b) in pairs if a != b), len(keys))
        return {index: values for index, values in self._checkpoints.items() if index <= common}


class CheckpointStore:
    """The checkpoints of the last trial on each sample. Thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        # By the identity of the feed, each with its size in bytes. The checkpoints keep a reference to their feed, so
        # no other feed can have the same identity.
        self._samples: dict[int, tuple[SampleCheckpoints, int]] = {}
        self._lock = Lock()

    def begin(self, feed: Feed, keys: Keys) -> SampleCheckpoints:
        """The checkpoints of a new trial: those of the last trial on this very `feed` that are valid for `keys`."""
        with self._lock:
            last, _ = self._samples.get(id(feed), (None, 0))
            return SampleCheckpoints(feed, keys, last.valid_for(keys) if last else {}, self._limit)

    def keep(self, checkpoints: SampleCheckpoints) -> None:
        """Keep the checkpoints of a finished trial, in place of those of the last trial on the same feed.

        If all samples together exceed the limit, each is shrunk to an equal share of it.
        """
        with self._lock:
            self._samples[id(checkpoints.feed)] = checkpoints, checkpoints.size
            if sum(size for _, size in self._samples.values()) <= self._limit:
                return
            share = self._limit // len(self._samples)
            for kept, size in self._samples.values():
                if size > share:
                    kept.shrink(share)
            sized = ((key, kept, kept.size) for key, (kept, _) in self._samples.items())
            self._samples = {key: (kept, size) for key, kept, size in sized if size}
