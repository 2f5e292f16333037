"""The accuracy that a plan had: a small JSON file beside the config, made to be read and to diff well.

One entry for each runner, GPU and set of versions; figures in three digits, keys in order, no date and no
path, so that the same model, plan and inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_helper.errors import ConfigError
from trt_helper.system.files import write_atomically
from trt_helper.values import LayerName, Plan, Statistic, TensorError, TensorName, Tolerance, over

SCHEMA = 1
NOISE = 0.01  # of the tolerance: errors below it are as good as this
FIGURES = ("max", "mean", "median", "max_rel", "mean_rel", "median_rel")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """What figures depend on besides model, plan and inputs."""

    runner: str
    gpu: str | None
    versions: Mapping[str, str]
    reference: str | None = None  # sha256 of the model that FP32 outputs came from; None: of the model itself

    @property
    def key(self) -> str:
        """In one line, as the file has it."""
        against = f"against {self.reference[:12]}" if self.reference else None
        parts = [part for part in (self.runner, self.gpu, against) if part]
        return ", ".join([*parts, *(f"{name} {version}" for name, version in sorted(self.versions.items()))])


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a plan reached once, worst sample: each output's errors and the layers where FP16 overflowed."""

    setup: Setup
    model: str  # sha256
    samples: str  # sha256 of all inputs
    plan: Plan
    outputs: tuple[TensorError, ...]
    overflow: Mapping[LayerName, int] | None  # elements; None where nobody saw them: in an engine
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A baseline file: entries by `Setup.key`."""

    entries: Mapping[str, Json] = field(default_factory=dict)

    def entry(self, setup: Setup) -> Json | None:
        """The entry of this very setup, else the last one of the same runner, GPU and versions aside.

        Errors against the model's own FP32 outputs are never held against those against another model's.
        """
        same = [
            entry
            for entry in self.entries.values()
            if entry["runner"] == setup.runner and bool(entry.get("reference")) == bool(setup.reference)
        ]
        return self.entries.get(setup.key) or (same[-1] if same else None)

    def with_(self, baseline: Baseline) -> Stored:
        """The same file with this entry in it, in place of an older one of the same setup."""
        return Stored({**self.entries, baseline.setup.key: _entry(baseline)})


def setup_of(entry: Mapping[str, Any]) -> Setup:
    """The setup that an entry was measured with."""
    return Setup(entry["runner"], entry["gpu"], entry["versions"], entry.get("reference"))


def default_path(config: Path) -> Path:
    """`fp32_layers.baseline.json` beside `fp32_layers.yaml`."""
    return config.with_name(f"{config.stem}.baseline.json")


def read(path: Path) -> Stored:
    """The baselines in `path`, or the result of `locate` in its run record; none without a file. Raises ConfigError."""
    if not path.exists():
        return Stored()
    again = "write it again with `trt-helper gate ... --update-baseline`"
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {type(error).__name__}", fix=again) from error
    if isinstance(data, dict) and data.get("command") == "locate":
        data = _from_run(data)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("baselines"), dict):
        raise ConfigError(f"{path} is no baseline of schema {SCHEMA}", fix=again)
    for key, entry in data["baselines"].items():
        if not _is_sound(entry):
            raise ConfigError(f"{path}: the entry {key!r:.200} is not a baseline", fix=again)
    return Stored(data["baselines"])


def _from_run(record: Json) -> Json:
    """A run record of `locate` as a baseline file, as far as it goes: it does not say where FP16 overflows."""
    try:
        outputs = {
            name: {key: error[key] or 0.0 for key in (*FIGURES, "non_finite")}
            for name, error in record["after"].items()
        }
        entry = {
            "runner": record["runner"],
            "gpu": None,
            "versions": {name: record["versions"][name] for name in ("onnxruntime", "trt-helper")},
            "model": record["model"]["sha256"],
            "samples": None,
            "FP32_LAYERS_FOR_FP16": record["fp32_layers"],
            "outputs": outputs,
            "overflow": None,
            "metric": None,
        }
    except (AttributeError, KeyError, TypeError):
        return {}
    return {"schema": record.get("schema"), "baselines": {"locate": entry}}


def write(stored: Stored, path: Path) -> None:
    """Write the file whole or not at all. Raises OutputError."""
    data = {"schema": SCHEMA, "baselines": stored.entries}
    write_atomically(path, (json.dumps(data, allow_nan=False, indent=2, sort_keys=True) + "\n").encode())


def _entry(baseline: Baseline) -> Json:
    return {
        "runner": baseline.setup.runner,
        "gpu": baseline.setup.gpu,
        "versions": dict(baseline.setup.versions),
        "reference": baseline.setup.reference,
        "model": baseline.model,
        "samples": baseline.samples,
        "FP32_LAYERS_FOR_FP16": sorted(baseline.plan.fp32),
        "bf16": sorted(baseline.plan.bf16),
        "outputs": {
            error.name: {
                **{name: three_digits(getattr(error, name)) for name in FIGURES},
                "non_finite": error.non_finite,
            }
            for error in baseline.outputs
        },
        "overflow": None if baseline.overflow is None else dict(sorted(baseline.overflow.items())),
        "metric": None if baseline.metric is None else three_digits(baseline.metric),
    }


def three_digits(number: float) -> float:
    """As many digits as an error is worth; the last bits, which differ from CPU to CPU, are not among them."""
    return float(f"{number:.3g}") if math.isfinite(number) else 0.0


def _is_sound(entry: object) -> bool:
    """Whether what is read from an entry is there and of the right type."""
    if not isinstance(entry, dict):
        return False
    outputs, overflow = entry.get("outputs"), entry.get("overflow")
    return (
        isinstance(entry.get("runner"), str)
        and isinstance(entry.get("gpu"), str | None)
        and isinstance(entry.get("versions"), dict)
        and isinstance(entry.get("reference"), str | None)
        and isinstance(entry.get("model"), str)
        and isinstance(overflow, dict | None)
        and isinstance(outputs, dict)
        and all(
            isinstance(figures, dict)
            and all(isinstance(figures.get(name), int | float) for name in (*FIGURES, "non_finite"))
            for figures in outputs.values()
        )
    )


def share(error: TensorError | Mapping[str, Any], name: TensorName, tolerance: Tolerance) -> float:
    """How much of what is allowed an error takes up; 1 is all of it. `elemwise` is measured by its worst element."""
    stat = Statistic.MAX if tolerance.stat is Statistic.ELEMWISE else tolerance.stat
    atol, rtol = tolerance.of(name)

    def figure(key: str) -> float:
        return three_digits(float(error[key] if isinstance(error, Mapping) else getattr(error, key)))

    shares = [over(figure(stat.value), atol), over(figure(f"{stat.value}_rel"), rtol)]
    return min(shares)


def times_worse(now: TensorError, before: Mapping[str, Any], tolerance: Tolerance) -> float:
    """How many times the error has grown, both held against today's tolerance; less than 1 is better."""
    new, old = share(now, now.name, tolerance), share(before, now.name, tolerance)
    return max(new, NOISE) / max(old, NOISE)


def new_overflow(now: Mapping[LayerName, int], before: Mapping[str, Any]) -> Sequence[LayerName]:
    """The layers where FP16 overflows and did not then; none where that was not recorded."""
    return [name for name in now if before["overflow"] is not None and name not in before["overflow"]]
