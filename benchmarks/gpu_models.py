"""The models of `gpu.py`, small ones first: the zoo of the tests, the shared real models, the made big ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hazard_models import MODELS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import zoo_cases  # noqa: F401, E402 - registers the cases
from support.zoo import CASES, Case  # noqa: E402

from trt_helper.inputs.sample import Sample  # noqa: E402
from trt_helper.inputs.samples import load_samples  # noqa: E402
from trt_helper.onnx_model.graph import Graph, read_graph  # noqa: E402
from trt_helper.onnx_model.load import load  # noqa: E402
from trt_helper.search.budget import Budget  # noqa: E402
from trt_helper.search.locate import locate  # noqa: E402
from trt_helper.values import Plan, Tolerance  # noqa: E402

# Tolerances of the shared models: half of FP16's error or less, so that FP16 fails and there is a plan to find;
# of ppocrv3_det two thirds.
SHARED = {
    "mnist": 0.0014,
    "silero_vad_16k_op15": 0.0027,
    "yunet_n_dynamic": 0.0037,
    "gtcrn_simple": 0.03,
    "resnet20_cifar10": 0.004,
    "ultraface_rfb_320": 0.0018,
    "ppocrv3_det": 0.053,
    "magika_standard_v3_3": 0.05,
}
# The made models by the size of their files.
MADE = (
    "segformer_b0",
    "lstm_tagger",
    "efficientnet_b0",
    "yolov8s_like",
    "detr_like",
    "whisper_tiny",
    "resnet50",
    "diffusion_unet",
    "t5_small",
    "vit_b16",
    "decoder_88m",
    "bert_base",
)
SMALL_ZOO = ("clean_attention", "variance_by_moments")
SMALL_MADE = ("bert_base",)
SMALL_SCALE = 0.1
MOST_SAMPLES = 4
SEARCH = 60  # seconds that a search may take; then the best plan so far is taken


class AbsentError(Exception):
    """A model is not here; says why."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its samples and tolerance. `plan` is known for models with planted hazards, else to be located."""

    graph: Graph
    samples: list[Sample]
    atol: float
    plan: Plan | None

    @property
    def tolerance(self) -> Tolerance:
        """Absolute only."""
        return Tolerance(self.atol, 0.0)

    def found_plan(self, seconds: float) -> Plan:
        """The plan that `locate` finds in so many seconds at most, or the one that is known."""
        if self.plan is not None:
            return self.plan
        budget = Budget(seconds=min(seconds, SEARCH))
        return locate(self.graph, self.samples, self.tolerance, budget=budget, every_layer=False).plan


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that can be made or read in an empty folder."""

    name: str
    group: str
    load: Callable[[Path], Loaded]


def subjects(shared: Path, *, small: bool) -> Iterator[Subject]:
    """All models, or a small set that takes seconds on a CPU."""
    for name in SMALL_ZOO if small else CASES:
        yield Subject(name, "zoo", _zoo(CASES[name]))
    for name in ("mnist",) if small else SHARED:
        yield Subject(name, "shared", _shared(shared / name))
    for name in SMALL_MADE if small else MADE:
        yield Subject(name, "made", _made(name, SMALL_SCALE if small else 1.0))


def _zoo(case: Case) -> Callable[[Path], Loaded]:
    def read(folder: Path) -> Loaded:
        path = folder / "model.onnx"
        path.write_bytes(case.make().SerializeToString())
        samples = [Sample(str(index), feed) for index, feed in enumerate(case.samples(0))]
        return Loaded(read_graph(load(path)), samples, case.atol, None)

    return read


def _shared(source: Path) -> Callable[[Path], Loaded]:
    def read(folder: Path) -> Loaded:
        if not source.is_dir():
            raise AbsentError(f"{source} is not here")
        path = _exported(source, folder) if source.name == "resnet20_cifar10" else source / "model.onnx"
        graph = read_graph(load(path))
        inputs = source / "inputs"
        samples = load_samples(graph, [inputs] if inputs.is_dir() else [])
        return Loaded(graph, samples[:MOST_SAMPLES], SHARED[source.name], None)

    return read


def _exported(source: Path, folder: Path) -> Path:
    """The ONNX file of the ResNet-20, which is a checkpoint."""
    (checkpoint,), path = source.glob("*.th"), folder / "model.onnx"
    definition = f"{ROOT / 'sample_models' / 'resnet20.py'}:resnet20"
    words = ["--model", definition, "--input", "image:1x3x32x32", "--exporter", "torchscript", "-o", str(path)]
    command = [sys.executable, "-m", "trt_helper", "export", str(checkpoint), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise AbsentError(f"its export failed: {done.stderr.strip().splitlines()[0]}")
    return path


def _made(name: str, scale: float) -> Callable[[Path], Loaded]:
    """With the layers that are planted, which are what `locate` finds (scale.py): a search would take too long here."""

    def read(folder: Path) -> Loaded:
        made = MODELS[name](folder / "model.onnx", scale)
        samples = [Sample("0", made.feeds(1)[0])]
        return Loaded(read_graph(load(made.path)), samples, made.atol, Plan(made.kept))

    return read
