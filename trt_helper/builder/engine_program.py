"""Read the operations inside an engine's kernels and their types from the engine file. Does not import TensorRT.

TensorRT-RTX compiles its kernels on the user's GPU, so the engine stores them as text (seen on 1.4.0 and 1.7.1):

- A generated kernel (`kgen`) is CUDA source. Every operation is a call that spells its type, such as
  `__myln_mul___myln_float___myln_float(a, b)`.
- A GEMM or convolution with an epilogue (`runtime_fusion`) is a small program that names ONNX layers, tensors and
  types.

The layer list, by contrast, shows only the types at a kernel's inputs and outputs.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trt_helper.builder.kernel_source import ROUNDED, KernelSource
from trt_helper.builder.layer_info import FLOAT_TYPES, onnx_names, type_name

_TENSORS, _MAIN, _END = b"\ndescriptors {\n", b"\n}\nmain {\n", b"\n}"
_TENSOR = re.compile(r'^  (?:sub_)?tensor=\{ .* name="(?P<name>.*)" offset=.* type=(?P<type>\w+) \}$')
_FACTOR = re.compile(r"const_payload_size=\d+ dims=\{ (?:1 )+\}")
_STEP = re.compile(r'^  (?P<kind>\w+)=\{ name=".*" output=\{(?P<out>.*?) \} input=\{(?P<in>.*?) \} .* layers="(.*)"')
_FUNCTION = re.compile(r'^  function=\{ name=(?P<name>\w+) fqn=(?P<source>\w+) .* layers="(?P<layers>.*)" ')
_VARIANT = re.compile(r" function = (\w+) binary")  # variants for dynamic shapes, one is chosen at run time
_QUOTED = re.compile(r'"(.*?)"(?= |$)')

_SOURCE = re.compile(rb'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(__myl_\w+)\(')
_TEXT = re.compile(rb"[\t\n\x20-\x7e]*")
_TEMPLATE = re.compile(r"\b(?:\w+_reduce\w*<(\w+Op)<|(cumsum)<)(__myln_\w+[^;(]*)>\(")
_WORDS = {"__myln_half": "FP16", "__myln_bf16": "BF16", "__myln_float": "FP32"}  # the type with the fewest bits first
_TOGETHER = re.compile(r"\barray_t<\w+, ?(\d+)>")  # number of sums computed in one pass

Operations = Mapping[tuple[str, str], int]
"""(operation, type) -> how often it occurs in a source; see `_operations`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a fused program and the float types of its operands, without scale factors."""

    kind: str
    onnx_layers: tuple[str, ...]
    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One generated kernel: how often its source calls each (operation, float type).

    A kernel for dynamic shapes can have variants, one of which is chosen at run time; `variants` has one entry for
    each. It is empty if a source is missing.
    """

    name: str  # such as "__myl_CastMulCast"; the layer list appends a number to it
    onnx_layers: tuple[str, ...]
    variants: tuple[Operations, ...]  # one per variant


@dataclass(frozen=True, slots=True)
class Program:
    """All kernel text that was found; empty for TensorRT 10 and 11, which compile to binaries."""

    steps: tuple[Step, ...] = ()  # of fused programs
    kernels: tuple[Kernel, ...] = ()  # generated ones


NO_TEXT = Program()


def read_program(engine: Path) -> Program:
    """Read the text of the kernels in the engine file `engine`."""
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sources = _sources(data)
        steps: list[Step] = []
        kernels: list[Kernel] = []
        for tensors, main in _blocks(data):
            types = _types(tensors)
            for line in main:
                if found := _FUNCTION.match(line):
                    kernels.append(_kernel(found, line, sources))
                elif found := _STEP.match(line):
                    steps.append(_step(found, types))
    return Program(tuple(steps), tuple(kernels))


def _blocks(data: mmap.mmap) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tensor lines and the operation lines of each program in the file."""
    start = data.find(_TENSORS)
    while start >= 0:
        middle = data.find(_MAIN, start)
        end = data.find(_END, middle + len(_MAIN))
        if middle < 0 or end < 0:
            return
        yield _lines(data[start + len(_TENSORS) : middle]), _lines(data[middle + len(_MAIN) : end])
        start = data.find(_TENSORS, end)


def _lines(text: bytes) -> list[str]:
    return text.decode("utf-8", "replace").split("\n")


def _types(lines: list[str]) -> dict[str, str]:
    """Return tensor name -> type.

    Constants of one element are left out: alpha and beta of an FP16 GEMM are FP32.
    """
    found = (_TENSOR.match(line) for line in lines if not _FACTOR.search(line))
    return {one["name"]: type_name(one["type"]) for one in found if one}


def _step(found: re.Match[str], types: Mapping[str, str]) -> Step:
    operands = [*_QUOTED.findall(found["in"]), *_QUOTED.findall(found["out"])]
    return Step(
        found["kind"],
        onnx_names(found[4]),
        frozenset(types[name] for name in operands if types.get(name) in FLOAT_TYPES),
    )


def _kernel(found: re.Match[str], line: str, sources: Mapping[str, Operations]) -> Kernel:
    used = [found["source"], *_VARIANT.findall(line)]
    variants = tuple(sources[name] for name in used) if all(name in sources for name in used) else ()
    return Kernel(found["name"], onnx_names(found["layers"]), variants)


def _sources(data: mmap.mmap) -> dict[str, Operations]:
    """Return kernel name -> its operations.

    A name that occurs twice with different operations gets none, so that it proves nothing.
    """
    found: dict[str, Operations] = {}
    for match in _SOURCE.finditer(data):
        text = _TEXT.match(data, match.end())
        source = text[0].partition(b'extern "C"')[0] if text else b""  # variants follow one another
        name, operations = match[1].decode(), _operations(source.decode())
        found[name] = operations if found.get(name, operations) == operations else {}
    return found


def _operations(source: str) -> Operations:
    """Count the operations on floats: ("mul", "FP32"), ("AddOp", "FP16") for a sum, ("cumsum", "FP32"), ...

    The type "ROUNDED" means FP32 between values that are rounded to FP16 before and after: TensorRT-RTX computes some
    FP16 operations that way. A sum of FP16 values runs in FP32 too, but counts as FP16.
    """
    called = KernelSource(source).count()
    for reduction, scan, types in _TEMPLATE.findall(source):
        together = _TOGETHER.search(types)
        dtype = next((dtype for word, dtype in _WORDS.items() if word in types), "")
        called[reduction or scan, dtype] += int(together[1]) if together else 1
    return {key: count for key, count in called.items() if key[1] in FLOAT_TYPES or key[1] == ROUNDED}
