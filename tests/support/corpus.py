"""The models that the onnx package tests ONNX itself with, and what a command makes of one in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import resource
import select
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from support.command_line import run

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator", "light")
HANG, TRACEBACK = "hang", "Traceback (most recent call last)"
MEMORY = 8 << 30  # bytes of address space beyond what is mapped already


@dataclass(frozen=True)
class Case:
    """A model with the inputs that came with it; None where they are no arrays of numbers."""

    name: str  # such as node/test_abs
    model: onnx.ModelProto
    feed: Mapping[str, np.ndarray] | None

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators of its nodes, with their domains where those are not the standard's."""
        named = (f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.model.graph.node)
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    command: str
    status: int | str  # an exit status, `hang`, or the name of the signal that ended the process
    says: str  # the line of the error, without its first word; empty without an error
    traceback: str  # empty if there is none
    seconds: float

    @property
    def is_bug(self) -> bool:
        return isinstance(self.status, str) or self.status == 70 or bool(self.traceback)


# --------------------------------------------------------------------------------------------------- models


@lru_cache(maxsize=1)
def node_cases() -> tuple[Case, ...]:
    """The tests of single operators. Their module makes them anew: the wheel has no files for them."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415 - takes ten seconds

        found = collect_testcases(None)
    made = []
    for one in found:
        (arrays, _), *_ = one.data_sets
        made.append(Case(f"node/{one.name.removeprefix('test_')}", one.model, feed_of(one.model, arrays)))
    return tuple(made)


def file_cases() -> tuple[Case, ...]:
    """The models that lie in the wheel."""
    return tuple(case for folder in FOLDERS for case in _folder_cases(folder))


def _folder_cases(folder: str) -> list[Case]:
    made = []
    for path in sorted((DATA / folder).rglob("*.onnx")):
        own = path.name == "model.onnx"
        model, name = onnx.load(path), path.parent.name if own else path.stem
        arrays = _stored(path.parent / "test_data_set_0", model) if own else [None]
        made.append(Case(f"{folder}/{name.removeprefix('test_')}", model, feed_of(model, arrays)))
    return made


def _stored(folder: Path, model: onnx.ModelProto) -> list[Any]:
    found: list[Any] = []
    for index, value in enumerate(model.graph.input):
        path = folder / f"input_{index}.pb"
        if not path.is_file():
            break
        tensor = value.type.HasField("tensor_type")
        found.append(numpy_helper.to_array(onnx.load_tensor(path)) if tensor else None)
    return found


def feed_of(model: onnx.ModelProto, arrays: Sequence[Any]) -> dict[str, np.ndarray] | None:
    """The arrays by the names of the inputs, or None if one of them cannot be in an .npz file."""
    names = [value.name for value in model.graph.input]
    if any(not isinstance(one, np.ndarray | np.generic) or np.asarray(one).dtype.kind not in "biuf" for one in arrays):
        return None
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=False)}


# ----------------------------------------------------------------------------------------------------- runs


def commands(case: Case, *, engine: bool) -> tuple[tuple[str, ...], ...]:
    """The words of each command that a model is taken through, in the folder that holds it."""
    inputs = ("--inputs", "inputs.npz") if case.feed else ()
    locate = ("locate", "model.onnx", *inputs, "--atol", "1e-2", "--time-limit", "10", "--runner", "emulate")
    typed = ("convert", "model.onnx", *inputs, "--no-engine", "--typed-onnx", "typed.onnx")
    built = ("convert", "model.onnx", *inputs, "-o", "model.trt", "--time-limit", "60")
    return (("inspect", "model.onnx", "--layers"), locate, typed, *((built,) if engine else ()))


def named(words: Sequence[str]) -> str:
    """What the words of a command are called in results: `locate`, `convert --no-engine`."""
    return f"{words[0]} --no-engine" if "--no-engine" in words else words[0]


def warm_up(case: Case) -> None:
    """Import what the commands import, once: every fork has it then."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        save(case, Path(folder))
        os.chdir(folder)
        for words in commands(case, engine=False):
            run(*words)
        os.chdir(before)


def save(case: Case, folder: Path) -> None:
    """Write the model and its inputs under the names that `commands` uses."""
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    if case.feed:
        np.savez(folder / "inputs.npz", **case.feed)


def outcomes(case: Case, words: Sequence[Sequence[str]], *, limit: float) -> list[Outcome]:
    """Run the commands one after the other in one process, each for at most `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        work = Path(folder)
        save(case, work)
        found: list[Outcome] = []
        while len(found) < len(words):
            made, end = forked(lambda one: outcome(one, work), words[len(found) :], limit)
            found += made
            if end:
                found.append(Outcome(named(words[len(found)]), end, "", "", limit if end == HANG else 0.0))
        return found


def outcome(words: Sequence[str], work: Path) -> Outcome:
    """Run one command in this process, in the folder `work`, and stay there."""
    os.chdir(work)
    started = monotonic()
    result = run(*words)
    lines = result.err.splitlines()
    says = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    _, _, trace = result.err.partition("Traceback (most recent call last)")
    status = 0 if result.status is None else result.status
    return Outcome(named(words), status, says, f"{TRACEBACK}{trace}" if trace else "", monotonic() - started)


def elsewhere(cases: Sequence[Case], *, limit: float) -> dict[str, tuple[bool, bool]]:
    """For each model whether ONNX Runtime runs it (without inputs: loads it), and whether TensorRT-RTX parses it."""
    found: dict[str, tuple[bool, bool]] = {}
    while len(found) < len(cases):
        left = cases[len(found) :]
        made, end = forked(_elsewhere, left, limit)
        found.update(zip((case.name for case in left), made, strict=False))
        if end:
            found[left[len(made)].name] = (False, False)
    return found


def _elsewhere(case: Case) -> tuple[bool, bool]:
    import onnxruntime  # noqa: PLC0415 - in the fork only

    data = case.model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        if case.feed is not None:
            session.run(None, {one.name: case.feed[one.name] for one in session.get_inputs()})
        runs = True
    except Exception:
        runs = False
    return runs, parser_words(data) == ""


def parser_words(model: bytes) -> str:
    """What TensorRT-RTX's parser says of a model that it refuses, in its own words; nothing if it takes it.

    To be called in a fork: the parser can end the process.
    """
    import tensorrt_rtx  # noqa: PLC0415 - in the fork only

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR)
    strong = 1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = tensorrt_rtx.Builder(logger).create_network(strong)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if parser.parse(model):
        return "" if network.num_layers else "no layers"
    return parser.get_error(0).desc() if parser.num_errors else "no reason"


def forked(work: Callable[[Any], Any], items: Sequence[Any], limit: float) -> tuple[list[Any], str]:
    """`work` of each item in one fork, each for at most `limit` seconds.

    Returns:
        The results; and how the fork ended before it had done all: `hang` or the name of a signal, else nothing.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(work, items, writing)
    with contextlib.suppress(OSError):  # the fork does it too: whichever comes first
        os.setpgid(child, child)
    os.close(writing)
    found: list[Any] = []
    end = ""
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while len(found) < len(items) and not end:
            if not select.select([stream], [], [], limit)[0]:
                end = HANG
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                break
            try:
                found.append(pickle.load(stream))  # noqa: S301 - from our own fork
            except (EOFError, pickle.UnpicklingError):
                break
    _, status = os.waitpid(child, 0)
    if len(found) < len(items) and not end:
        end = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
    return found, end


def _serve(work: Callable[[Any], Any], items: Sequence[Any], writing: int) -> None:
    """The life of a fork: it writes each result and ends without the clean-up of the process it is a copy of."""
    os.setpgid(0, 0)
    _limit_memory()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        for item in items:
            os.write(writing, pickle.dumps(work(item)))
    except BaseException:
        os._exit(99)
    os._exit(0)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def frames(traceback: str, count: int = 2) -> list[str]:
    """The last frames of a traceback that lie in trt_helper, as `file:line in function`."""
    found = re.findall(r'File "[^"]*/(trt_helper/[^"]+)", line (\d+), in (\S+)', traceback)
    return [f"{file}:{line} in {function}" for file, line, function in found][-count:]


def exception(traceback: str) -> str:
    """The last line of a traceback that names an exception, at most 200 characters."""
    found = re.findall(r"^([A-Za-z_][\w.]*(?:: .*)?)$", traceback, re.MULTILINE)
    named = [line for line in found if not line.startswith(("error:", "fix:", "warning:", "note:", "while "))]
    return named[-1][:200] if named else ""
