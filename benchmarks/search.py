"""Trials to an answer, for several searches on the same emulated oracle: `python benchmarks/search.py`.

- trt-helper: this project.
- delta debugging: Zeller's ddmin over the pins, as the minimality of one pin promises it too.
- bisection: the first N layers in network order, as `polygraphy debug precision --mode bisect --dir forward`
  documents it ("try running the first N layers in higher precision"); it gives a prefix, not a set.
- segments: the search of onnxconverter-common's `auto_mixed_precision`: the largest stretch of layers that is not
  yet known to do harm is tried in FP16, and halved when it does.

A second table holds the shared models against tolerances between their FP16 error and a tenth of it. The floor for
k pins is k + 2 trials. Uses the models under ../shared/models where they are there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trt_helper.emulator.emulator import Emulator
from trt_helper.inputs.references import references
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import load
from trt_helper.search.locate import locate
from trt_helper.search.oracle import Criteria, EmulatedOracle
from trt_helper.values import Plan, Tolerance, Verdict

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
CASES = (("magika_standard_v3_3", (0.05, 0.01, 0.001)),)
OTHERS = ("gtcrn_simple", "yunet_n_dynamic", "ultraface_rfb_320", "silero_vad_16k_op15", "mnist", "ppocrv3_det")
SHARES = (1.5, 2, 3, 5, 8)  # FP16's error over the tolerance

Passes = Callable[[Sequence[str]], bool]


def ddmin(pins: list[str], passes: Passes) -> list[str]:
    """Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002), figure 3."""
    parts = 2
    while len(pins) >= 2:
        size = -(-len(pins) // parts)
        chunks = [pins[start : start + size] for start in range(0, len(pins), size)]
        for chunk in chunks:
            if passes(chunk):
                pins, parts = chunk, 2
                break
        else:
            for index in range(len(chunks)):
                rest = [name for other, chunk in enumerate(chunks) if other != index for name in chunk]
                if passes(rest):
                    pins, parts = rest, max(parts - 1, 2)
                    break
            else:
                if parts >= len(pins):
                    return pins
                parts = min(len(pins), 2 * parts)
    return pins


def prefix(layers: list[str], passes: Passes) -> list[str]:
    low, high = 0, len(layers)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(layers[:middle]):
            high = middle
        else:
            low = middle
    return layers[:high]


def segments(layers: list[str], passes: Passes) -> list[str]:
    half: set[str] = set()
    waiting = [layers]
    while waiting:
        segment = max(waiting, key=len)
        waiting.remove(segment)
        if passes([name for name in layers if name not in half and name not in segment]):
            half.update(segment)
        elif len(segment) > 1:
            middle = len(segment) // 2
            waiting += [segment[:middle], segment[middle:]]
    return [name for name in layers if name not in half]


def counted(graph: Graph, samples: list[Sample], tolerance: Tolerance) -> tuple[Passes, list[Plan]]:
    criteria = Criteria(samples, references(graph, samples), tolerance)
    oracle = EmulatedOracle(Emulator(graph), criteria)
    tried: dict[Plan, bool] = {}

    def passes(pins: Sequence[str]) -> bool:
        plan = Plan.of(pins)
        if plan not in tried:
            tried[plan] = oracle.judge(plan, criteria.every_sample).trial.verdict is Verdict.PASS
            order.append(plan)
        return tried[plan]

    order: list[Plan] = []
    return passes, order


def main() -> int:
    table = Table(title="Pins and trials (trials over the floor k + 2)", title_justify="left", box=None)
    for column in ("model", "atol", "trt-helper", "delta debugging", "bisection of the first N", "segments"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, tolerances in CASES:
        folder = SHARED / name
        if not folder.is_dir():
            print(f"skipped: {name} is not under {SHARED}")
            continue
        graph = read_graph(load(folder / "model.onnx"))
        samples = load_samples(graph, [folder / "inputs"])
        for atol in tolerances:
            tolerance = Tolerance(atol, 0.0)
            located = locate(graph, samples, tolerance, every_layer=False)
            row = [_cell(len(located.plan), len(located.trials))]
            for search in (ddmin, prefix, segments):
                passes, order = counted(graph, samples, tolerance)
                passes(graph.candidates), passes(())
                row.append(_cell(len(search(list(graph.candidates), passes)), len(order)))
            table.add_row(name, f"{atol:g}", *row)
    Console(width=140).print(table)
    Console(width=140).print(others())
    return 0


def others() -> Table:
    """What the tolerance asks of models that FP16 harms everywhere a little."""
    title = "FP16's error over the tolerance: pins and trials (trials over the floor k + 2)"
    table = Table("model", *(f"{share:g}" for share in SHARES), title=title, title_justify="left", box=None)
    for name in OTHERS:
        folder = SHARED / name
        if not folder.is_dir():
            continue
        graph = read_graph(load(next(folder.glob("*.onnx"))))
        inputs = folder / "inputs"
        samples = load_samples(graph, [inputs] if inputs.is_dir() else [])
        criteria = Criteria(samples, references(graph, samples), Tolerance(1.0, 0.0))
        error = EmulatedOracle(Emulator(graph), criteria).judge(Plan(), criteria.every_sample).trial.error_ratio
        row = []
        for share in SHARES:
            located = locate(graph, samples, Tolerance(error / share, 0.0), every_layer=False)
            row.append(_cell(len(located.plan), len(located.trials)))
        table.add_row(f"{name} ({error:.2g})", *row)
    return table


def _cell(pins: int, trials: int) -> str:
    return f"{pins} pins, {trials} trials ({trials / (pins + 2):.2f})"


if __name__ == "__main__":
    sys.exit(main())
