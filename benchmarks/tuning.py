"""What each constant of `trt_helper.search.tuning` is worth: `python benchmarks/tuning.py [--every N] [NAME ...]`.

Every case of the zoo and some shared models are searched with the constant as it is, halved and doubled. Printed are
the sums over all searches: trials, pins, and forward passes (thousands), each with the change in percent; and in how
many searches the plan has another size. A constant whose changes are within the noise everywhere can go.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import onnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "models"
sys.path.insert(0, str(ROOT / "tests"))

from support import zoo_cases  # noqa: E402, F401 - registers the cases
from support.zoo import CASES  # noqa: E402

from trt_helper.inputs.sample import Sample  # noqa: E402
from trt_helper.inputs.samples import load_samples  # noqa: E402
from trt_helper.onnx_model.graph import Graph, read_graph  # noqa: E402
from trt_helper.onnx_model.load import load  # noqa: E402
from trt_helper.search import tuning  # noqa: E402
from trt_helper.search.locate import locate  # noqa: E402
from trt_helper.values import Tensors, Tolerance  # noqa: E402

REAL = (("magika_standard_v3_3", 0.01), ("mnist", 0.001), ("yunet_n_dynamic", 0.0025))
FACTORS = (0.5, 2.0)
ONLY_SAID = ("SMALL_SET", "USUAL_PASSES", "WORTH_A_NOTE")  # they choose words and no trial
CONSTANTS = tuple(name for name in vars(tuning) if name.isupper() and not name.startswith(ONLY_SAID))


@dataclass(frozen=True)
class Cost:
    """One search."""

    trials: int
    pins: int
    inferences: int


@cache
def task(name: str) -> tuple[Graph, list[Sample]]:
    if name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(CASES[name].make(), path)
            graph = read_graph(load(path))
        return graph, [Sample(str(index), feed) for index, feed in enumerate(CASES[name].samples(0))]
    graph = read_graph(load(next((SHARED / name).glob("*.onnx"))))
    inputs = SHARED / name / "inputs"
    return graph, load_samples(graph, [inputs] if inputs.is_dir() else [])


def search(name: str, atol: float, constant: str, factor: float) -> Cost:
    """Search with one constant changed. References are those of the first run: the model's file may be gone."""
    usual = getattr(tuning, constant)
    setattr(tuning, constant, type(usual)(usual * factor))
    try:
        graph, samples = task(name)
        found = locate(graph, samples, Tolerance(atol, 0.0), every_layer=False, references=references(name))
    finally:
        setattr(tuning, constant, usual)
    return Cost(len(found.trials), len(found.plan), found.inferences)


@cache
def references(name: str) -> list[Tensors]:
    from trt_helper.emulator.emulator import Emulator  # noqa: PLC0415

    graph, samples = task(name)
    return [Emulator(graph).reference(sample.feed) for sample in samples]


def searches(every: int) -> list[tuple[str, float]]:
    zoo = [(name, case.atol) for name, case in CASES.items()][::every]
    return [*(r for r in REAL if (SHARED / r[0]).is_dir()), *zoo]


def run(of: tuple[str, float], constants: Sequence[str]) -> list[Cost]:
    """One model with every constant as it is, halved and doubled."""
    first = search(*of, CONSTANTS[0], 1.0)
    return [first, *(search(*of, constant, factor) for constant in constants for factor in FACTORS)]


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("constants", nargs="*", metavar="CONSTANT", help="of trt_helper/search/tuning.py; all")
    parser.add_argument("--every", type=int, default=1, help="take every N-th model of the zoo")
    options = parser.parse_args()
    chosen = tuple(options.constants) or CONSTANTS
    tasks = searches(options.every)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = pool.map(partial(run, constants=chosen), tasks)
        found = list(track(running, "searches", len(tasks), console=Console(stderr=True)))
    table = Table("constant", "value", "trials", "pins", "passes, k", "other size", box=None)
    usual = [costs[0] for costs in found]
    table.add_row("(as it is)", "", *_sums(usual, usual), "")
    for index, constant in enumerate(chosen):
        for which, factor in enumerate(FACTORS):
            changed = [costs[1 + len(FACTORS) * index + which] for costs in found]
            other = sum(a.pins != b.pins for a, b in zip(usual, changed, strict=True))
            value = getattr(tuning, constant) * factor
            table.add_row(constant, f"{value:g}", *_sums(usual, changed), str(other))
    Console(width=120).print(f"{len(found)} searches", table)
    return 0


def _sums(usual: list[Cost], changed: list[Cost]) -> list[str]:
    cells = []
    for name in ("trials", "pins", "inferences"):
        before, after = (sum(getattr(cost, name) for cost in costs) for costs in (usual, changed))
        shown = f"{after / 1000:.1f}" if name == "inferences" else str(after)
        cells.append(f"{shown} ({100 * (after / before - 1):+.1f} %)")
    return cells


if __name__ == "__main__":
    sys.exit(main())
