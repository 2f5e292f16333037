"""Count the operations in the source of a generated kernel, each value once. Does not import TensorRT.

In these sources every value has one name, such as `__v7`, and is assigned before it is read. A statement calls one
operation, casts, copies, loads or stores. That is enough to determine the type of each operation, and whether its
inputs and results are rounded to FP16.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from hashlib import blake2b

from trt_helper.builder.layer_info import type_name

ROUNDED = "ROUNDED"  # FP32, but inputs and result are rounded to FP16

_STATEMENT = re.compile(r"\b(__v\d+) = ([^;{}]+);")
_LANE = re.compile(r"\.values\[\d+\]")
_STORED = re.compile(r"(?:\]|\.\w+) = (__v\d+);|\breturn (__v\d+);")
_CALL = re.compile(r"^__myln_([a-z]\w*?)___myln_(\w+?)___myln_(\w+)\(")
_CAST = re.compile(r"^__myln_cast<__myln_\w+, __myln_\w+>\(")
_VALUE = re.compile(r"\b__v\d+\b")
_INDEX = re.compile(r"(?<!live_inouts)\[.*\]$")
_DIGEST = re.compile(r"#\w+")
_ARGUMENT = re.compile(r"^\*\(__myln_\w+\*\)live_inouts")  # a scalar argument of the kernel
# A number as 1.7 (hexadecimal) and 1.4 (decimal) write it.
_NUMBER = re.compile(r"^(?:__float2half)?\(?-?(?:0x[\da-f.]+p[-+]\d+|[\d.]+e[-+]\d+)f?\)?$")
_ONE = re.compile(r"^(?:__float2half)?\(?(?:0x1p\+0|1\.0+e\+00)f?\)?$")
_MOST_COPIES = 9  # copies between names that are followed; after more of them a value counts as rounded


class KernelSource:
    """The values of one kernel source and the statements that assign them."""

    def __init__(self, source: str) -> None:
        self._texts: dict[str, list[str]] = defaultdict(list)  # a value that is assigned in two branches has two
        self._users: dict[str, list[str]] = defaultdict(list)
        self._digests: dict[str, str] = {}
        self._stored = {stored or returned for stored, returned in _STORED.findall(source)}
        for name, statement in _STATEMENT.findall(_LANE.sub("", source)):
            text = statement.strip()
            if text in self._texts[name]:
                continue  # another lane of a vector
            self._texts[name].append(text)
            for read in _VALUE.findall(_INDEX.sub("", text)):
                self._users[read].append(name)
            self._digests[name] = self._digest(name, text)

    def count(self) -> Counter[tuple[str, str]]:
        """Count the operations: (operation, type) -> number of different values that they produce.

        The phases of a kernel compute some values again and read them by other indices, so the same operation on the
        same values, apart from indices, counts once. A division of 1 by a value is called "rcp". The type is `ROUNDED`
        for an FP32 operation whose inputs and result are all rounded.
        """
        found: Counter[tuple[str, str]] = Counter()
        seen: set[str] = set()
        for name, texts in self._texts.items():
            call = _CALL.match(texts[0])
            if call and self._digests[name] not in seen:
                seen.add(self._digests[name])
                found["rcp" if self._is_reciprocal(texts[0]) else call[1], self._type(name, call)] += 1
        return found

    def _digest(self, name: str, text: str) -> str:
        """Return a digest of the expression that computes a value; a copy has the digest of its source."""
        made = _VALUE.sub(lambda found: self._digests.get(found[0], found[0]), _INDEX.sub("[]", text))
        if name in self._digests:
            made = f"{self._digests[name]} or {made}"
        return made if _DIGEST.fullmatch(made) else f"#{blake2b(made.encode(), digest_size=8).hexdigest()}"

    def _type(self, name: str, call: re.Match[str]) -> str:
        kind = type_name(call[2] if call[1] == "select" else call[3])
        return ROUNDED if kind == "FP32" and self._is_rounded(name) else kind

    def _is_rounded(self, name: str) -> bool:
        read = [value for text in self._texts[name] for value in _VALUE.findall(text)]
        return not any(self._is_unrounded(value) for value in read) and not self._is_used_unrounded(name)

    def _is_unrounded(self, name: str, steps: int = 0) -> bool:
        """Return whether this input of an operation was never rounded, that is, is neither cast nor a number.

        A quotient is computed as a product with a reciprocal; there the input of the reciprocal decides.
        """
        for text in self._texts.get(name, ()) if steps < _MOST_COPIES else ():
            if _VALUE.fullmatch(text) or self._is_reciprocal(text):
                if any(self._is_unrounded(value, steps + 1) for value in _VALUE.findall(text)):
                    return True
            elif not any(pattern.match(text) for pattern in (_CAST, _NUMBER, _ARGUMENT)):
                return True
        return False

    def _is_used_unrounded(self, name: str, steps: int = 0) -> bool:
        """Return whether anything other than a cast consumes the value."""
        if name in self._stored:
            return True
        for user in self._users[name] if steps < _MOST_COPIES else ():
            for text in self._texts[user]:
                if name in _VALUE.findall(text) and (
                    self._is_used_unrounded(user, steps + 1) if _VALUE.fullmatch(text) else not _CAST.match(text)
                ):
                    return True
        return False

    def _is_reciprocal(self, text: str) -> bool:
        call = _CALL.match(text)
        first = _VALUE.findall(text)[:1] if call and call[1] == "div" else ()
        return any(_ONE.match(one) for name in first for one in self._texts.get(name, ()))
