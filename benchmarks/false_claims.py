"""Is the proof of the pins ever talked into a pin that is not there? `python benchmarks/false_claims.py`.

Every zoo model and runs of layers of every real model are built with each pin left out in turn, and with all of them
left out, while the proof is told that they are there. Some ten minutes on two cores. Leaves with 1 if one is believed.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import zoo_cases  # noqa: F401, E402 - registers the cases
from support.false_claims import Claims  # noqa: E402
from support.zoo import CASES  # noqa: E402

from trt_helper.errors import BuildError  # noqa: E402
from trt_helper.inputs.sample import Sample  # noqa: E402
from trt_helper.inputs.samples import load_samples  # noqa: E402
from trt_helper.onnx_model.graph import read_graph  # noqa: E402
from trt_helper.onnx_model.load import load  # noqa: E402

REAL = ROOT.parent / "shared" / "models"
RUN = 6  # layers


def claims(folder: Path) -> Iterator[tuple[str, Claims]]:
    for name, case in CASES.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(case.make().SerializeToString())
        samples = [Sample(str(index), feed) for index, feed in enumerate(case.samples(0))]
        if case.culprits[0]:
            yield name, Claims(read_graph(load(path)), case.culprits[0], samples, folder)
    for path in sorted(REAL.glob("*/model.onnx")):
        graph, inputs = read_graph(load(path)), path.parent / "inputs"
        samples = load_samples(graph, [inputs]) if inputs.is_dir() else []
        for quarter in (1, 2, 3):
            start = quarter * len(graph.candidates) // 4
            yield path.parent.name, Claims(graph, graph.candidates[start : start + RUN], samples, folder)


def main() -> int:
    said: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, one in claims(Path(folder)):
            try:
                for left_out, states in one.false():
                    said.update(states.values())
                    believed = [pin for pin, state in states.items() if state == "honoured"]
                    if believed:
                        print(f"{name}: built without {len(left_out)} of {len(one.pins)} pins, believed: {believed}")
            except BuildError as error:
                print(f"{name}: {error.message}")
    found = ", ".join(f"{count} {state}" for state, count in said.most_common())
    print(f"TensorRT-RTX {version('tensorrt_rtx')}: {sum(said.values())} pins that are not there: {found}")
    return 1 if said["honoured"] else 0


if __name__ == "__main__":
    sys.exit(main())
