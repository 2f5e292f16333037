"""What `locate` costs on models of the size that people have: `python benchmarks/scale.py [--samples 8] [name ...]`.

Each model of `hazard_models.py` is made, and located in a process of its own. Printed are CPU seconds as a multiple of
one plain ONNX Runtime inference (one thread, same run), trials over the floor k + 2, forward passes for what is
looked up between trials, peak memory, and whether the pins are the planted layers and no others. With `--peers PYTHON`
(see peers.py) AutoCast's CPU seconds stand beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from peers import AUTOCAST
from process import run

HERE = Path(__file__).resolve().parent
BY_DEFAULT = ("bert_base", "vit_b16", "decoder_88m", "t5_small", "resnet50", "yolov8s_like", "diffusion_unet")


def locate_one(folder: Path, samples: int) -> dict[str, object]:
    """Locate the model in this process."""
    from trt_helper.inputs.samples import load_samples  # noqa: PLC0415
    from trt_helper.onnx_model.graph import read_graph  # noqa: PLC0415
    from trt_helper.onnx_model.load import load  # noqa: PLC0415
    from trt_helper.search.locate import locate  # noqa: PLC0415
    from trt_helper.values import Tolerance  # noqa: PLC0415

    known = json.loads((folder / "planted.json").read_text())
    graph = read_graph(load(folder / "model.onnx"))
    found = load_samples(graph, [folder / "inputs"] if samples > 1 else [folder / "inputs.npz"])[:samples]
    one = one_inference(folder / "model.onnx", found[0].feed)
    before = time.process_time()
    located = locate(graph, found, Tolerance(known["atol"], 0.0), every_layer=False)
    seconds = time.process_time() - before
    planted = {name for group in known["planted"] for name in group}
    missing, extra = len(planted - located.plan.fp32), len(located.plan.fp32 - planted)
    return {
        "layers": len(graph.candidates),
        "one": one,
        "cpu": seconds,
        "pins": len(located.plan),
        "planted": "exactly" if not missing + extra else f"{missing} missing, {extra} more",
        "trials": len(located.trials),
        "inferences": located.inferences,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def one_inference(path: Path, feed: Mapping[str, np.ndarray]) -> float:
    """CPU seconds of one inference in ONNX Runtime as it comes, on one thread; the median of three."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options)
    seconds = []
    for _ in range(4):
        before = time.process_time()
        session.run(None, dict(feed))
        seconds.append(time.process_time() - before)
    return statistics.median(seconds[1:])


def autocast(python: str, folder: Path) -> str:
    """CPU seconds of AutoCast on the same model and sample, its start-up included; or why it failed."""
    names = {"model": folder / "model.onnx", "inputs": folder / "inputs.npz", "out": folder / "autocast.onnx"}
    found = run([python, *(part.format(**names) for part in AUTOCAST)])
    return found.error or f"{found.cpu:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=BY_DEFAULT, help="models of hazard_models.py")
    parser.add_argument("--samples", type=int, default=1, help="1 or 8")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(locate_one(asked.one, asked.samples)))
        return 0
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    columns = (
        "model",
        "layers",
        "one inference, s",
        "locate, CPU s",
        "inferences",
        "trials",
        "pins",
        "planted",
        "peak GB",
    )
    table = Table(*columns, "AutoCast, CPU s", title=f"{asked.samples} samples", title_justify="left", box=None)
    with tempfile.TemporaryDirectory() as made:
        for name in asked.names:
            subprocess.run(
                [sys.executable, str(HERE / "hazard_models.py"), made, name], check=True, capture_output=True
            )
            command = [sys.executable, __file__, "--one", f"{made}/{name}", "--samples", str(asked.samples)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            peer = autocast(asked.peers, Path(made) / name) if asked.peers else ""
            times, over = row["cpu"] / row["one"], row["trials"] / (row["pins"] + 2)
            table.add_row(
                *(name, str(row["layers"]), f"{row['one']:.2f}", f"{row['cpu']:.1f} ({times:.0f} x)"),
                *(str(row["inferences"]), f"{row['trials']} ({over:.2f})", str(row["pins"]), row["planted"]),
                *(f"{row['peak']:.1f}", peer),
            )
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
