"""The baseline: the accuracy that a plan had, in a small JSON file beside the config.

The file has one entry for each runner, GPU and set of versions. It has figures with three digits, sorted keys, no date
and no path. So the same model, plan and inputs give the same bytes, and the file diffs well in version control.
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
NOISE = 0.01  # error ratio; smaller ones count as this much, so that noise is no regression
FIGURES = ("max", "mean", "median", "max_rel", "mean_rel", "median_rel")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """The runner, machine and reference that the figures of a baseline depend on."""

    runner: str
    gpu: str | None
    versions: Mapping[str, str]  # by library
    reference: str | None = None  # sha256 of the model that computed the FP32 outputs; None is the model itself

    @property
    def key(self) -> str:
        """The setup in one line: the key of its entry in the file."""
        against = f"against {self.reference[:12]}" if self.reference else None
        parts = [part for part in (self.runner, self.gpu, against) if part]
        return ", ".join([*parts, *(f"{name} {version}" for name, version in sorted(self.versions.items()))])


@dataclass(frozen=True, slots=True)
class Baseline:
    """The accuracy of a plan in one setup, worst sample."""

    setup: Setup
    model: str  # sha256
    samples: str  # sha256 of all inputs
    plan: Plan
    outputs: tuple[TensorError, ...]
    overflow: Mapping[LayerName, int] | None  # elements that overflow in FP16, by layer; None for an engine
    metric: float | None = None  # the figure of the user's function, if there is one


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of a baseline file."""

    entries: Mapping[str, Json] = field(default_factory=dict)  # by `Setup.key`

    def entry(self, setup: Setup) -> Json | None:
        """The entry of exactly this setup, else the last one with the same runner on any GPU and versions, else None.

        An entry with a separate reference model never stands for a setup without one, nor the reverse.
        """
        same = [
            entry
            for entry in self.entries.values()
            if entry["runner"] == setup.runner and bool(entry.get("reference")) == bool(setup.reference)
        ]
        return self.entries.get(setup.key) or (same[-1] if same else None)

    def updated(self, baseline: Baseline) -> Stored:
        """A copy in which `baseline` replaces the entry of the same setup."""
        return Stored({**self.entries, baseline.setup.key: _entry(baseline)})


def setup_of(entry: Mapping[str, Any]) -> Setup:
    """The setup that an entry was measured with."""
    return Setup(entry["runner"], entry["gpu"], entry["versions"], entry.get("reference"))


def default_path(config: Path) -> Path:
    """The path of the baseline of a config: `fp32_layers.baseline.json` beside `fp32_layers.yaml`."""
    return config.with_name(f"{config.stem}.baseline.json")


def read(path: Path) -> Stored:
    """The baselines in the file `path`, which may also be a run record of `locate`. Without a file there are none.

    Raises:
        ConfigError: The file cannot be read or is neither of the two.
    """
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
    """A run record of `locate` as a baseline file. It has no overflows, because a run record does not have them."""
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
    """Write a baseline file, completely or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
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
    """`number` with three significant digits: the last bits of an error differ from CPU to CPU. 0 if not finite."""
    return float(f"{number:.3g}") if math.isfinite(number) else 0.0


def _is_sound(entry: object) -> bool:
    """Whether the keys that are read from an entry are there and of the right type."""
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
    """The error ratio of an output from figures with three digits. For `elemwise` it is that of the largest error.

    Args:
        error: Of today's run, or the figures of a baseline's entry.
        name: Of the output.
        tolerance: Its absolute and relative limits; the smaller ratio of the two counts.
    """
    stat = Statistic.MAX if tolerance.stat is Statistic.ELEMWISE else tolerance.stat
    atol, rtol = tolerance.of(name)

    def figure(key: str) -> float:
        return three_digits(float(error[key] if isinstance(error, Mapping) else getattr(error, key)))

    shares = [over(figure(stat.value), atol), over(figure(f"{stat.value}_rel"), rtol)]
    return min(shares)


def times_worse(now: TensorError, before: Mapping[str, Any], tolerance: Tolerance) -> float:
    """The error ratio now over the one of the baseline, both with today's tolerance. Less than 1 is better."""
    new, old = share(now, now.name, tolerance), share(before, now.name, tolerance)
    return max(new, NOISE) / max(old, NOISE)


def new_overflow(now: Mapping[LayerName, int], before: Mapping[str, Any]) -> Sequence[LayerName]:
    """The layers where FP16 overflows now and did not in the baseline; none if the baseline has no overflows."""
    return [name for name in now if before["overflow"] is not None and name not in before["overflow"]]
