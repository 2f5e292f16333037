"""The gate judges whether a plan is still right for the model as it is now, and whether its pins are still needed.

Nothing is executed that the caller did not name: a metric or a data loader that only the config mentions is an error,
and is not run.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trt_helper.builder.settings import BuildSettings
from trt_helper.config.evidence import (
    given_shapes,
    recorded_additions,
    recorded_guards,
    recorded_inputs,
    recorded_pins,
    recorded_reading,
)
from trt_helper.config.plan_file import Config, model_path, pin_lines, read_config, tolerance_yaml
from trt_helper.errors import ConfigError, InputError, MachineError, TrtHelperError, nearest
from trt_helper.gate import baseline as base
from trt_helper.gate.findings import (
    LEVELS,
    MOST_NAMED,
    Finding,
    at_most,
    by_metric,
    by_tolerance,
    overflows,
    quoted,
    regressions,
)
from trt_helper.gate.plan_run import EmulatedPlanRun, EnginePlanRun, PlanRun
from trt_helper.gate.result import EMULATE, Gated, Request
from trt_helper.inputs import cache
from trt_helper.inputs.metric import Metric, load_metric
from trt_helper.inputs.references import half_warning, require_alike
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import RANDOM_WARNING, load_samples
from trt_helper.inputs.shapes import parse_shapes, profile, ranges_of, samples_in
from trt_helper.onnx_model.graph import Graph, load_graph
from trt_helper.runners.oracle import RunnerOracle
from trt_helper.runners.run import Runner, runner_here
from trt_helper.search.oracle import Criteria
from trt_helper.system.files import tidy
from trt_helper.system.machine import find_gpu
from trt_helper.system.versions import versions
from trt_helper.values import REWRITE_KINDS, LayerName, Plan

ALONE = "judge this config alone; memory may have run out, or a data loader or metric ended the process"


def gate_all(requests: Sequence[Request], on_done: Callable[[int], None] = lambda _done: None) -> list[Gated]:
    """Judge several configs: emulated ones several at a time, in processes of their own, others one by one.

    Args:
        requests: the configs.
        on_done: called with the number of configs that are done.

    Returns:
        One result per request, in their order.
    """
    emulated = all(request.runner == EMULATE for request in requests)
    workers = min(len(requests), os.cpu_count() or 1) if emulated else 1
    if workers <= 1:
        return list(_counted(map(gate, requests), on_done))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        futures = [pool.submit(gate, request) for request in requests]
        return list(_counted(map(_outcome, requests, futures), on_done))


def _outcome(request: Request, future: Future[Gated]) -> Gated:
    try:
        return future.result()
    except BrokenProcessPool:
        finding = Finding("input", "error", "", "it was not judged: a process ended before it had an answer", ALONE)
        return Gated(request.config, MachineError.exit_status, (finding,))


def _counted(results: Iterable[Gated], on_done: Callable[[int], None]) -> Iterator[Gated]:
    for done, gated in enumerate(results, start=1):
        yield gated
        on_done(done)


def gate(request: Request) -> Gated:
    """Judge one config. A problem with its files is a finding, not an exception."""
    started = time.monotonic()
    return replace(_attempt(request), seconds=time.monotonic() - started)


def _attempt(request: Request) -> Gated:
    try:
        config = read_config(request.config)
        graph = load_graph(model_path(config, request.model), config.rewrites)
        missing = tuple(at_most(list(_missing_layers(graph, config, request))))
        if missing:
            return Gated(request.config, ConfigError.exit_status, missing, graph.source.path, graph.source.sha256)
        _require_outputs(graph, config)
        return _judged(graph, config, request)
    except TrtHelperError as error:
        finding = Finding("input", "error", "", error.message, error.fix)
        return Gated(request.config, error.exit_status, (finding,))


def _judged(graph: Graph, config: Config, request: Request) -> Gated:
    """Run the plan; compare it with the tolerance or the metric, then with the baseline."""
    tolerance, path = config.tolerance, request.baseline or base.default_path(request.config)
    original = _original(graph, request)
    runner = None if request.runner == EMULATE else runner_here(request.runner)
    setup = _setup(runner, None if original is graph else original.source.sha256)
    before = _baseline(path, setup, request)
    samples, findings = _samples(graph, config, request)
    metric = _metric(config, request)
    cache_key = cache.reference_key(graph, samples)
    references = cache.cached_references(original, samples, {**cache_key, "model": original.source.sha256})
    run = _run_plan(graph, config, Criteria(samples, references, tolerance), runner, request.repeats)
    again = f"find the plan again: {_locate_command(config, graph, request)}"
    accept = "if that is meant to be, run the same command with --update-baseline"
    figure = metric.figure(references, run.outputs) if metric and run.outputs else None
    if metric:
        failures = list(by_metric(metric.name, metric.threshold, figure, again))
    else:
        failures = list(by_tolerance(run.trial, run.per_sample, [s.source for s in samples], tolerance, again))
    if request.reference and (warning := half_warning(original)):
        findings.append(Finding("reference", "warning", "", warning))
    findings += [*_changes(graph, config, run.plan), *failures]
    if before:
        findings += regressions(run.trial.outputs, before, tolerance, request.factor, accept)
    findings += overflows(run.overflow, before, accurate=not failures, fix=f"{again}; {accept}")
    if not request.update:
        findings += _compare_setups(path, setup, before, cache_key)
    if not failures:
        key = {**cache_key, "reference": original.source.sha256}
        findings += _unneeded_pins(run, metric, key, config, request, again)
    now = base.Baseline(
        setup, cache_key["model"], cache_key["samples"], run.plan, run.trial.outputs, run.overflow, figure
    )
    return Gated(
        config=request.config,
        status=int(any(finding.level == "error" for finding in findings)),
        findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
        model=graph.source.path,
        sha256=graph.source.sha256,
        tolerance=tolerance,
        metric=(metric.name, metric.threshold, figure) if metric else None,
        samples=tuple(sample.source for sample in samples),
        candidates=len(graph.candidates),
        now=now,
        before=before,
        baseline=path,
    )


def _setup(runner: Runner | None, reference: str | None) -> base.Setup:
    if runner is None:
        return base.Setup(EMULATE, None, versions(), reference)
    known = {**versions(), runner.package: runner.version}
    return base.Setup(runner.name, find_gpu().name or None, known, reference)


def _run_plan(graph: Graph, config: Config, criteria: Criteria, runner: Runner | None, repeats: int) -> PlanRun:
    """Run the plan on every sample: emulated without a runner, else as `convert` builds it."""
    plan = graph.plan(config.fp32_layers, config.bf16_layers)
    if runner is None:
        return EmulatedPlanRun(graph, plan, criteria, recorded_reading(config))
    settings = BuildSettings(tensorrt=runner.name == "tensorrt", exclude_tactics=config.exclude_tactics)
    oracle = RunnerOracle(
        graph,
        runner,
        criteria,
        profile(graph, ranges_of(graph, criteria.samples))[0],
        settings,
        repeats=repeats,
        guards=recorded_guards(config, graph.candidates),
    )
    return EnginePlanRun(oracle, plan)


def _original(graph: Graph, request: Request) -> Graph:
    if request.reference is None:
        return graph
    original = load_graph(tidy(request.reference))
    require_alike(graph, original)
    return original


def _missing_layers(graph: Graph, config: Config, request: Request) -> Iterator[Finding]:
    known = {layer.name for layer in graph.layers} | graph.aliases.keys()
    missing = [name for name in (*config.fp32_layers, *config.bf16_layers) if name not in known]
    lines = pin_lines(request.config) if missing else {}
    repair = f"if layers were renamed or rebuilt, find the plan again: {_locate_command(config, graph, request)}"
    for index, name in enumerate(missing):
        near = nearest(name, known) if index < MOST_NAMED else None
        hint = f"did you mean {quoted(near)}? " if near else ""
        yield Finding(
            "layer", "error", name, f"the model has no layer named {quoted(name)}", hint + repair, lines.get(name, 0)
        )


def _require_outputs(graph: Graph, config: Config) -> None:
    for name in config.tolerance.per_output:
        if name not in graph.outputs:
            raise ConfigError(
                f"{config.path} has a tolerance for {quoted(name)}, which is no output of the model",
                fix=f"its outputs: {', '.join(graph.outputs)}",
            )


def _samples(graph: Graph, config: Config, request: Request) -> tuple[list[Sample], list[Finding]]:
    """The samples of the command line, else those that `locate` recorded, else a random one."""
    if request.inputs:
        return load_samples(graph, request.inputs, script=request.script), []
    given = parse_shapes(given_shapes(config), graph)
    if request.script:
        return samples_in(graph, (), request.script, given), []
    script = config.evidence.get("data-loader-script")
    if script:
        raise InputError(
            f"{request.config} was made with samples from {script!s:.200}, which the command line does not name",
            fix="add --data-loader-script FILE.py: what only a config names is never run",
        )
    recorded = recorded_inputs(config)
    for path in recorded:
        if not path.exists():
            raise InputError(
                f"{request.config} was made with the inputs {path}, which are not there",
                fix="put them there, or give others with --inputs",
            )
    if recorded:
        return samples_in(graph, recorded, None, given), []
    return samples_in(graph, (), None, given), [Finding("random", "warning", "", RANDOM_WARNING)]


def _metric(config: Config, request: Request) -> Metric | None:
    """The metric that the command line names. Raises where the config needs one and none is named."""
    recorded = config.evidence.get("metric")
    recorded = recorded if isinstance(recorded, dict) else {}
    if request.metric is None:
        if recorded:
            raise InputError(
                f"{request.config} was made with the metric {recorded.get('function')!s:.200},"
                " which the command line does not name",
                fix="add --metric FILE.py:function: what only a config names is never run",
            )
        return None
    threshold = recorded.get("threshold") if request.metric_threshold is None else request.metric_threshold
    if not isinstance(threshold, int | float):
        raise InputError(f"{request.config} records no metric threshold", fix="give it with --metric-threshold")
    return load_metric(request.metric, float(threshold))


def _locate_command(config: Config, graph: Graph, request: Request) -> str:
    """What to type for a new plan in place of this one."""
    file = str(request.config)
    inputs = [str(path) for path in request.inputs or recorded_inputs(config)]
    words = ["trt-helper", "locate", str(graph.source.path), "--config", file]
    words += [word for path in inputs for word in ("--inputs", path)]
    words += [word for text in given_shapes(config) for word in ("--shapes", text)]
    words += ["--data-loader-script", request.script] if request.script else []
    words += ["--metric", request.metric] if request.metric else []
    kinds = {rewrite.kind for rewrite in config.rewrites} | ({"bf16"} if config.bf16_layers else set())
    words += ["--runner", request.runner] if request.runner != EMULATE else []
    words += ["--cures", ",".join(kind for kind in REWRITE_KINDS if kind in kinds | {"pins"})] if kinds else []
    return shlex.join([*words, "-o", file])


def _baseline(path: Path, setup: base.Setup, request: Request) -> Mapping[str, Any] | None:
    """The baseline's entry to compare with, if there is one. Raises InputError for a missing file."""
    if request.update:
        return None
    if request.baseline and not path.exists():
        raise InputError(f"the baseline {path} does not exist", fix="write it with --update-baseline")
    return base.read(path).entry(setup)


def _compare_setups(
    path: Path, setup: base.Setup, before: Mapping[str, Any] | None, cache_key: Mapping[str, Any]
) -> Iterator[Finding]:
    """Note that there is no baseline, or that it was measured with another setup or on other inputs."""
    if before is None:
        kind = " made with --reference" if setup.reference else ""
        said = f"{path} holds no baseline{kind}: nothing but the tolerance was asked"
        yield Finding("baseline", "note", "", said, "write one with --update-baseline")
        return
    if (key := base.setup_of(before).key) != setup.key:
        said = f"the baseline is of {key}, this is {setup.key}; they were compared all the same"
        yield Finding("baseline", "note", "", said, "write one for this setup with --update-baseline")
    if before.get("samples") not in (None, cache_key["samples"]):
        said = "the baseline is of other inputs; they were compared all the same"
        yield Finding("baseline", "note", "", said, "write one for these inputs with --update-baseline")


def _changes(graph: Graph, config: Config, plan: Plan) -> Iterator[Finding]:
    """Note what has changed since the plan was found: the model, the list of pins."""
    if config.sha256 and config.sha256 != graph.source.sha256:
        old, new = config.sha256[:12], graph.source.sha256[:12]
        said = f"the model has changed since the plan was made (sha256 {new}, was {old}); judged as it is now"
        yield Finding("model", "note", "", said)
    gone = [name for name in recorded_pins(config) if graph.aliases.get(name, name) not in plan.kept]
    said = "the plan was found with a pin that is no longer in it"
    yield from at_most([Finding("removed", "note", name, f"{said}: {quoted(name)}") for name in gone])


def _unneeded_pins(
    run: PlanRun, metric: Metric | None, cache_key: Mapping[str, Any], config: Config, request: Request, fix: str
) -> Iterator[Finding]:
    """Warn of each pin without which the plan passes as well."""
    if not run.pins or not (_are_unproven(run, config, request) if request.check_pins is None else request.check_pins):
        return
    added = recorded_additions(config)  # they make TensorRT keep their neighbours; no error needs them
    found = [name for name in _passing_without(run, metric, cache_key) if name not in added]
    lines = pin_lines(request.config) if found else {}
    said = "is no longer needed: the plan is accurate without it"
    yield from at_most([Finding("pin", "warning", n, f"pin {quoted(n)} {said}", fix, lines.get(n, 0)) for n in found])


def _passing_without(run: PlanRun, metric: Metric | None, cache_key: Mapping[str, Any]) -> list[LayerName]:
    """The pins without which the plan passes as well. Answers of the emulator are cached."""
    if not isinstance(run, EmulatedPlanRun):
        return [name for name in run.pins if run.passes_without(name, metric)]  # an engine each, on the one GPU
    rewrites = [[rewrite.kind, rewrite.name, rewrite.op] for rewrite in run.graph.rewrites]
    plan = [sorted(run.plan.fp32), sorted(run.plan.bf16), *rewrites]
    tolerance = asdict(run.criteria.tolerance)
    key = {**cache_key, "plan": plan, "tolerance": tolerance, "metric": metric and metric.name}
    known = None if metric else cache.cached_value(key)  # a metric can change with its file
    if isinstance(known, list) and set(known) <= set(run.pins):
        return known
    with ThreadPoolExecutor(min(len(run.pins), os.cpu_count() or 1)) as pool:
        passed = list(pool.map(lambda name: run.passes_without(name, metric), run.pins))
    found = [name for name, passes in zip(run.pins, passed, strict=True) if passes]
    if not metric:
        cache.cache_value(key, found)
    return found


def _are_unproven(run: PlanRun, config: Config, request: Request) -> bool:
    """Whether no `locate` has shown that each pin is needed, for this model, plan, tolerance and these inputs.

    Never for engines: to find out would take one engine per pin.
    """
    evidence = config.evidence
    return isinstance(run, EmulatedPlanRun) and not (
        evidence.get("minimal") is True
        and evidence.get("tolerance") == tolerance_yaml(config.tolerance)
        and config.sha256 == run.graph.source.sha256
        and {run.graph.aliases.get(name, name) for name in recorded_pins(config)} == set(run.pins)
        and not (request.inputs or request.script)
    )
