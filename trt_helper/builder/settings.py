"""The settings of an engine build and its shape profiles, checked before TensorRT sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

from trt_helper.errors import ConfigError, InputError, nearest
from trt_helper.system.machine import RTX_COMPUTE_CAPABILITIES

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> (min, opt, max) shapes. For a shape tensor the three are its values, not its shape."""

CURRENT = "current"

# IBuilderConfig names that `extra` cannot set -> what to do instead.
OWNED = {
    "num_compute_capabilities": "use the setting compute_capabilities",
    "flags": "name each BuilderFlag, for example STRICT_NANS=on",
    "profiling_verbosity": "leave it out: the proof of the pins needs DETAILED",
    "progress_monitor": "leave it out: trt-helper reports the progress",
}


YES_NO = {
    **dict.fromkeys(("1", "on", "true", "yes"), True),
    **dict.fromkeys(("0", "off", "false", "no"), False),
}


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How an engine is built.

    Attributes:
        compute_capabilities: Written "8.6", "sm86" or "current". Empty means every GPU that TensorRT-RTX supports.
        workspace: Bytes; None is TensorRT's default.
        timing_cache: A file that TensorRT reads and updates. TensorRT-RTX has none.
        tensorrt: Build with TensorRT 10 or 11 for the GPU of this machine, instead of TensorRT-RTX.
        debug_tensors: ONNX tensors that must be readable when the engine runs: see `EngineBuild.marked`.
        exclude_tactics: Entries of TRT_EXCLUDE_TACTIC.
        plugins: Libraries that TensorRT loads. Loading one runs its code.
        time_limit: Seconds of wall clock for the building process.
        memory_limit: Bytes of resident memory of the building process.
        extra: Attributes of IBuilderConfig and BuilderFlags by name, such as
            {"avg_timing_iterations": "4", "STRICT_NANS": "on"}.

    Raises:
        ConfigError: No build can use a value.
    """

    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    tensorrt: bool = False
    debug_tensors: tuple[str, ...] = ()
    exclude_tactics: tuple[Mapping[str, str], ...] = ()
    plugins: tuple[Path, ...] = ()
    time_limit: float | None = None
    memory_limit: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def tf32(self) -> bool:
        """Whether FP32 products may be rounded to TF32. `extra` can switch it on; the default is off."""
        return YES_NO.get(self.extra.get("TF32", "off").lower(), False)

    def stated(self) -> dict[str, Any]:
        """Return the settings that are set, as JSON values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value or (value == 0 and value is not False)}

    def __post_init__(self) -> None:
        for text in self.compute_capabilities:
            capability_member(text)
        for what, value in (
            ("workspace", self.workspace),
            ("time limit", self.time_limit),
            ("memory limit", self.memory_limit),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"the {what} is {value}", fix="give a number above 0, or leave it out")
        for plugin in self.plugins:
            if not plugin.is_file():
                raise ConfigError(f"there is no plugin library {plugin}", fix="check the path")
        for name in self.extra:
            if name in OWNED:
                raise ConfigError(f"the builder argument {name!r} is not free", fix=OWNED[name])


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def capability_member(text: str) -> str:
    """Return the ComputeCapability member that `text` names: "8.6", "86" and "sm_86" are SM86.

    Raises:
        ConfigError: TensorRT-RTX does not have this compute capability.
    """
    bare = text.strip().lower()
    if bare == CURRENT:
        return "CURRENT"
    digits = bare.removeprefix("sm").removeprefix("_").replace(".", "")
    if digits not in {known.replace(".", "") for known in RTX_COMPUTE_CAPABILITIES}:
        raise ConfigError(
            f"TensorRT-RTX has no compute capability {text!r}",
            fix=f"known are {', '.join(RTX_COMPUTE_CAPABILITIES)} and {CURRENT}",
        )
    return f"SM{digits}"


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """One network input as TensorRT parsed it.

    Attributes:
        name: Name of the input.
        shape: -1 is a dynamic dimension.
        values: Whether it is a shape tensor: a profile gives its values, not its shape.
    """

    name: str
    shape: Shape
    values: bool = False

    @property
    def needs_profile(self) -> bool:
        """Whether a profile must have an entry for it."""
        return self.values or any(size < 0 for size in self.shape)


def check_profiles(profiles: Sequence[Profile], inputs: Sequence[NetworkInput]) -> None:
    """Check the profiles against the network's inputs.

    Raises:
        InputError: TensorRT would refuse a profile, or a dynamic input has none.
    """
    dynamic = [one for one in inputs if one.needs_profile]
    if dynamic and not profiles:
        first = dynamic[0]
        raise InputError(
            f"{_description(first)} and it has no shape profile",
            fix=f"give its smallest, usual and largest shape: --shapes {_example(first)}",
        )
    known = {one.name: one for one in inputs}
    for profile in profiles:
        for name, triple in profile.items():
            if name not in known:
                near = nearest(name, known)
                raise InputError(
                    f"the shape profile names {name!r}, which is no input of the model",
                    fix=f"did you mean {near!r}?" if near else f"the inputs are {', '.join(known)}",
                )
            _check_triple(known[name], triple)
        for one in dynamic:
            if one.name not in profile:
                raise InputError(
                    f"{_description(one)} and the shape profile lacks it",
                    fix=f"add it: --shapes {_example(one)}",
                )


def _check_triple(one: NetworkInput, triple: tuple[Shape, Shape, Shape]) -> None:
    """Raise InputError unless min <= opt <= max and each of the three fits the input."""
    wanted = f"{one.name!r} is {_sizes(one.shape)}"
    rank = prod(one.shape) if one.values else len(one.shape)
    for shape in triple:
        if len(shape) != rank:
            what = "values" if one.values else "dimensions"
            raise InputError(
                f"the shape profile gives {one.name!r} {len(shape)} {what} ({_sizes(shape)}), the model has {rank}",
                fix=f"{wanted}; '?' is free",
            )
        if not one.values and any(
            size < 0 or fixed not in (-1, size) for size, fixed in zip(shape, one.shape, strict=True)
        ):
            raise InputError(
                f"the shape profile gives {one.name!r} the shape {_sizes(shape)}",
                fix=f"{wanted}; only '?' is free",
            )
    low, usual, high = triple
    if any(not a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        raise InputError(
            f"the shape profile of {one.name!r} is not min <= opt <= max: "
            f"{_sizes(low)}, {_sizes(usual)}, {_sizes(high)}",
            fix="order the three shapes so that no dimension falls",
        )


def _sizes(shape: Shape) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"


def _description(one: NetworkInput) -> str:
    if one.values:
        return f"the values of input {one.name!r} set shapes,"
    return f"input {one.name!r} is dynamic ({_sizes(one.shape)})"


def _example(one: NetworkInput) -> str:
    """Return a profile as the user would type it: 1, 4 and 8 for each dynamic dimension."""
    given = (-1,) * prod(one.shape) if one.values else one.shape
    shapes = (tuple(free if size < 0 else size for size in given) for free in (1, 4, 8))
    return f"{one.name}:" + ",".join(_sizes(shape) for shape in shapes)
