"""What becomes of the pins in real engines: every zoo and every real model -> a table of asked and real precision.

`python benchmarks/engines.py` builds them all with the TensorRT-RTX that is installed, some four minutes on two cores,
and writes `engines-VERSION.md`. It leaves with 1 if a pin was demoted or a model does not build.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import zoo_cases  # noqa: F401, E402 - registers the cases
from support.zoo import CASES  # noqa: E402

from trt_helper.builder.convert import Converted, convert  # noqa: E402
from trt_helper.builder.settings import BuildSettings  # noqa: E402
from trt_helper.errors import TrtHelperError  # noqa: E402
from trt_helper.inputs.sample import Sample  # noqa: E402
from trt_helper.inputs.samples import load_samples  # noqa: E402
from trt_helper.inputs.shapes import profile, ranges_of  # noqa: E402
from trt_helper.onnx_model.graph import Graph, read_graph  # noqa: E402
from trt_helper.onnx_model.load import load  # noqa: E402

REAL = ROOT.parent / "shared" / "models"
LAYER_NORM = ("LayerNorm_1/Square", "LayerNorm_1/Sum_1", "LayerNorm_1/truediv_1")  # magika's smallest plan


@dataclass(frozen=True)
class Subject:
    """One model with one plan."""

    name: str
    plan: str
    graph: Graph
    pins: Sequence[str]
    samples: Sequence[Sample]


def zoo(folder: Path) -> Iterator[Subject]:
    """Every case with its first smallest cure."""
    for name, case in CASES.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(case.make().SerializeToString())
        samples = [Sample(str(index), feed) for index, feed in enumerate(case.samples(0))]
        pins = sorted(case.culprits[0])
        yield Subject(name, f"cure, {len(pins)}", read_graph(load(path)), pins, samples)


def real() -> Iterator[Subject]:
    """Every real model with nothing, every third layer, and everything pinned."""
    for path in sorted(REAL.glob("*/model.onnx")):
        graph, name = read_graph(load(path)), path.parent.name
        inputs = path.parent / "inputs"
        samples = load_samples(graph, [inputs] if inputs.is_dir() else [], script=None, shapes={})
        for label, pins in (
            ("nothing", ()),
            ("every third layer", graph.candidates[::3]),
            ("everything", graph.candidates),
            ("LayerNorm_1", [name for name in graph.candidates if name.endswith(LAYER_NORM)]),
        ):
            if pins or label == "nothing":
                yield Subject(name, f"{label}, {len(pins)}", graph, pins, samples)


def converted(subject: Subject, folder: Path) -> Converted:
    """Build `subject` as `trt-helper convert` does."""
    return convert(
        subject.graph,
        subject.graph.plan(subject.pins),
        engine=folder / "model.trt",
        typed_onnx=None,
        profile=profile(subject.graph, ranges_of(subject.graph, subject.samples))[0],
        settings=BuildSettings(),
    )


def row(subject: Subject, done: Converted, seconds: float) -> str:
    """One line of the table: what was asked, what is there."""
    states = Counter(proof.state for proof in done.proofs)
    held = [
        f"{len(names)} {what}"
        for what, names in (("guarded", done.retention.guards), ("added", done.retention.added))
        if names
    ]
    weights = done.engine.weight_bytes if done.engine else {}
    cells = (
        subject.name,
        subject.plan,
        ", ".join(f"{count} {state}" for state, count in sorted(states.items(), key=lambda one: -one[1])) or "-",
        ", ".join(held) or "-",
        str(len(done.builds)),
        f"{100 * done.half_share:.0f} %",
        ", ".join(f"{size / 2**10:.0f} KiB {kind}" for kind, size in weights.items()) or "-",
        f"{seconds:.1f}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = """| model | pinned | in the engine | held by | builds | FP16 layers | weights | s |
|---|---|---|---|---|---|---|---|"""


def main() -> int:
    """Build everything, write the table; 1 if anything is not as asked."""
    lines, wrong, states = [HEAD], [], Counter[str]()
    open_pins: list[str] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for subject in (*zoo(folder), *real()):
            started = time.perf_counter()
            try:
                done = converted(subject, folder)
            except TrtHelperError as error:
                wrong.append(f"- {subject.name}, {subject.plan}: {error.message}")
                sys.stdout.write(f"{wrong[-1]}\n")
                continue
            lines.append(row(subject, done, time.perf_counter() - started))
            states.update(proof.state for proof in done.proofs)
            open_pins += [f"- {subject.name}, `{one.layer}`: {one.state}, {one.because}" for one in done.unproven]
            sys.stdout.write(f"{lines[-1]}\n")
    installed = version("tensorrt_rtx")
    summary = ", ".join(f"{count} {state}" for state, count in states.most_common())
    parts = [
        f"# Pins in engines of TensorRT-RTX {installed}\n",
        f"Written by `engines.py` on a machine without a GPU. Pins: {summary}. Not as asked: {len(wrong)}.\n",
        "\n".join(lines),
        *(["\n## Not as asked\n", "\n".join(wrong)] if wrong else ()),
        *(["\n## Not provable, and why\n", "\n".join(open_pins)] if open_pins else ()),
    ]
    (Path(__file__).parent / f"engines-{installed}.md").write_text("\n".join(parts) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
