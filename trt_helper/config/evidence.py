"""The `evidence` of a config: the facts that `locate` and `convert` recorded in the YAML file.

A user may have edited them. An entry of another type than expected is ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trt_helper.config.plan_file import Config
from trt_helper.system.files import tidy
from trt_helper.values import READINGS, LayerName, Reading


def given_shapes(config: Config) -> tuple[str, ...]:
    """The values of --shapes that `locate` ran with."""
    shapes = config.evidence.get("given-shapes")
    return tuple(map(str, shapes)) if isinstance(shapes, list) else ()


def recorded_reading(config: Config) -> Reading:
    """What `locate` took kernels to compute; for a plan that passes by every reading, the least exact one."""
    name = config.evidence.get("judged-with")
    named = Reading.WORST.value if name == "robust" else name
    return next((reading for reading in READINGS if reading.value == named), Reading.TYPICAL)


def recorded_inputs(config: Config) -> tuple[Path, ...]:
    """The paths of --inputs that `locate` ran with. The config has them relative to its own folder."""
    inputs = config.evidence.get("inputs")
    folder = config.path.parent if config.path else Path()
    return tuple(tidy(folder / str(path)) for path in inputs) if isinstance(inputs, list) else ()


def recorded_pins(config: Config) -> tuple[LayerName, ...]:
    """The pins that `locate` found."""
    layers = config.evidence.get("layers")
    return tuple(map(str, layers)) if isinstance(layers, dict) else ()


def recorded_guards(config: Config, layers: Collection[LayerName]) -> tuple[LayerName, ...]:
    """The layers that an earlier conversion guarded, if the model, which has `layers`, still has them."""
    named = _engine(config).get("guards")
    return tuple(name for name in map(str, named) if name in layers) if isinstance(named, list) else ()


def recorded_additions(config: Config) -> frozenset[LayerName]:
    """The pins that an earlier conversion added."""
    named = _engine(config).get("added")
    return frozenset(map(str, named)) if isinstance(named, dict) else frozenset()


def _engine(config: Config) -> Mapping[str, Any]:
    engine = config.evidence.get("engine")
    return engine if isinstance(engine, dict) else {}
