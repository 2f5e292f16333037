"""The first steps that commands share: options become values, files become models, configs and samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trt_helper.cli.console import warn
from trt_helper.config.plan_file import Config, model_path, per_output, read_config, require_same_model
from trt_helper.errors import ConfigError, MachineError, UsageError
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import RANDOM_WARNING
from trt_helper.inputs.shapes import parse_shapes, samples_in
from trt_helper.onnx_model.graph import Graph, load_graph, read_graph
from trt_helper.onnx_model.load import Model, load
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Plan, Reading, Rewrite, Statistic, Tolerance

if TYPE_CHECKING:
    from trt_helper.search.oracle import OracleFactory


def command_line() -> list[str]:
    """The command line, as the run record keeps it."""
    return ["trt-helper", *sys.argv[1:]]


def open_config(config: Path | None, model: Path | None) -> tuple[Config, Path]:
    """The config (an empty one if none is given), and the path of the model that is given or that it names."""
    found = read_config(config) if config else Config()
    if model is None and found.model is None:
        raise typer.BadParameter("give a model, or a --config that names one")
    return found, model_path(found, model)


def open_plan(config: Config, model: Path | Model) -> tuple[Graph, Plan]:
    """The model with the config's rewrites, and the config's plan. Raises ConfigError if it is of another model."""
    source = model if isinstance(model, Model) else load(model)
    graph = read_graph(source, config.rewrites)
    require_same_model(config, source.sha256, source.path)
    return graph, graph.plan(config.fp32_layers, config.bf16_layers)


def open_graph(path: Path, rewrites: Sequence[Rewrite] = ()) -> Graph:
    """Load, check and normalise a model, with the rewrites of a config."""
    return load_graph(path, rewrites)


def open_reference(graph: Graph, path: Path | None) -> Graph:
    """The model whose FP32 outputs are the reference: `graph` itself unless another file is given."""
    from trt_helper.inputs.references import half_warning, require_alike

    if path is None:
        return graph
    reference = open_graph(path)
    require_alike(graph, reference)
    if warning := half_warning(reference):
        warn(warning)
    return reference


def open_samples(
    graph: Graph,
    inputs: Sequence[Path] | None,
    script: str | None,
    shapes: Sequence[str] | None,
    store: ArrayStore | None = None,
) -> list[Sample]:
    """The user's samples, or a random one with a warning; and the first one again at the ends of given ranges."""
    if not inputs and not script:
        warn(RANDOM_WARNING)
    return samples_in(graph, inputs or (), script, parse_shapes(shapes or (), graph), store)


def tolerance(
    graph: Graph,
    atol: Sequence[str] | None,
    rtol: Sequence[str] | None,
    stat: str | None,
    base: Tolerance | None = None,
) -> Tolerance:
    """The tolerance from the options, and from `base` where an option is not given. Raises ConfigError."""
    base = base or Tolerance()
    absolute = per_output(atol or (), "--atol", base.atol)
    relative = per_output(rtol or (), "--rtol", base.rtol)
    named = dict.fromkeys([name for name in (*base.per_output, *absolute, *relative) if name])
    for name in named:
        if name not in graph.outputs:
            raise ConfigError(f"the model has no output {name!r}", fix=f"its outputs: {', '.join(graph.outputs)}")
    usual = {name: base.per_output.get(name, (absolute[""], relative[""])) for name in named}
    own = {name: (absolute.get(name, usual[name][0]), relative.get(name, usual[name][1])) for name in named}
    try:
        statistic = Statistic(stat) if stat else base.stat
    except ValueError:
        raise UsageError(
            f"--check-error-stat {stat!r} is no statistic", fix="it is one of: max, mean, median, elemwise"
        ) from None
    return Tolerance(absolute[""], relative[""], statistic, own)


def named_values(texts: Sequence[str], option: str) -> dict[str, str]:
    """The values of a repeated option `NAME=VALUE`. Raises UsageError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"{option} {text!r} is not NAME=VALUE", fix=f"such as {option} STRICT_NANS=on")
        found[name] = value
    return found


def is_tensorrt(builder: str) -> bool:
    """Whether `--builder` means TensorRT 10 or 11. Raises MachineError if it is requested and cannot be used."""
    from importlib.util import find_spec

    from trt_helper.system.machine import find_gpu

    if builder == "auto":
        return find_spec("tensorrt_rtx") is None and find_spec("tensorrt") is not None and not find_gpu().missing
    missing = "the Python package tensorrt" if find_spec("tensorrt") is None else find_gpu().missing
    if builder == "tensorrt" and missing:
        raise MachineError(
            f"--builder tensorrt needs {missing}",
            fix="pip install 'trt-helper[tensorrt]' on a machine with an NVIDIA GPU, or leave --builder out",
        )
    return builder == "tensorrt"


@contextmanager
def judging(
    runner: str,
    repeats: int,
    ray: str | None,
    graph: Graph,
    samples: Sequence[Sample],
    tactics: tuple[Mapping[str, Any], ...] = (),
    readings: Sequence[Reading] = (Reading.TYPICAL,),
) -> Iterator[tuple[str, OracleFactory | None]]:
    """The name of the runner, and what makes its oracle, here or on the cluster of `--ray`; None for the emulator.

    Engines are built without the excluded `tactics`; TensorRT-RTX refuses them.

    Raises:
        MachineError: the runner or the cluster cannot be used.
    """
    emulates = runner in {"auto", "emulate"}
    name = "emulate" if emulates else runner
    make = None if emulates else _runner_oracle(runner, repeats, graph, samples, tactics, check=ray is None)
    if ray is None:
        yield name, make
        return
    try:
        from trt_helper.runners.ray_cluster import Cluster
    except ImportError as error:
        raise MachineError(f"--ray needs Ray: {error}", fix="pip install 'trt-helper[ray]'") from error
    with Cluster(ray, make, gpus=int(not emulates), readings=readings) as cluster:
        yield name, cluster.oracle


def _runner_oracle(
    runner: str,
    repeats: int,
    graph: Graph,
    samples: Sequence[Sample],
    tactics: tuple[Mapping[str, Any], ...],
    *,
    check: bool,
) -> OracleFactory:
    from functools import partial

    from trt_helper.builder.settings import BuildSettings
    from trt_helper.inputs.shapes import profile, ranges_of
    from trt_helper.runners.oracle import runner_oracle
    from trt_helper.runners.run import runner_here

    if check:
        runner_here(runner)
    settings = BuildSettings(tensorrt=runner == "tensorrt", exclude_tactics=tactics)
    ranges, _ = profile(graph, ranges_of(graph, samples))
    return partial(runner_oracle, runner=runner, profile=ranges, settings=settings, repeats=repeats)


def require_tactics(config: Config, *, tensorrt: bool) -> None:
    """Raise ConfigError for excluded tactics where TensorRT-RTX builds: it chooses kernels on the user's GPU."""
    if tensorrt or not config.exclude_tactics:
        return
    raise ConfigError(
        f"{config.path}: TRT_EXCLUDE_TACTIC cannot be applied by TensorRT-RTX, which chooses tactics on the user's GPU",
        fix="empty the list, or build with TensorRT on a GPU",
    )
