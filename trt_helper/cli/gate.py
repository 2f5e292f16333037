"""`trt-helper gate`."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_helper.cli import options

if TYPE_CHECKING:
    from trt_helper.gate.result import Gated

YAML = (".yaml", ".yml")


def run(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL.onnx] [CONFIG.yaml]...",
            help="Configs (.yaml, .yml), and a model in place of the one that a single config names.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config", "-c", metavar="FILE.yaml", help="A config; the same as an argument.", show_default=False
        ),
    ] = None,
    reference: options.Reference = None,
    inputs: options.Inputs = None,
    data_loader_script: options.LoaderScript = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:function", help="Judge by this figure instead.", show_default=False),
    ] = None,
    metric_threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="What the figure must reach. [default: as recorded]", show_default=False),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="What was reached. [default: beside the config]", show_default=False),
    ] = None,
    max_regression: Annotated[
        str, typer.Option(metavar="N[x]", help="How many times the baseline's error is allowed.")
    ] = "2x",
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write the baseline instead of asking it.")
    ] = False,
    check_pins: Annotated[
        bool | None,
        typer.Option(
            "--check-pins/--no-check-pins",
            help="Try each pin's absence. [default: where nothing shows that it is needed]",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE.xml", help="Write JUnit XML.", show_default=False)] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown summary.", show_default=False)
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE.sarif", help="Write SARIF 2.1.0.", show_default=False)
    ] = None,
    runner: options.Runner = "auto",
    repeats: options.Repeats = 2,
    as_json: options.AsJson = False,
) -> None:
    """Judge plans against the models as they are now: for CI.

    Inputs are those that `locate` recorded in the config, unless --inputs gives others. A metric or a data
    loader runs only when it is named here. Leaves with 1 where accuracy is lost, 3 where a plan no longer fits.
    """
    from trt_helper.cli.console import progress, show, show_json
    from trt_helper.gate.gate import gate_all
    from trt_helper.gate.result import EMULATE, Request
    from trt_helper.gate.writers.table import headline, of
    from trt_helper.system.files import require_writable

    configs = [*(config or ()), *(file for file in files or () if file.suffix.lower() in YAML)]
    models = [file for file in files or () if file.suffix.lower() not in YAML]
    _require_one_meaning(configs, models, {"--reference": reference, "--baseline": baseline})
    base = Request(
        config=configs[0],
        model=models[0] if models else None,
        reference=reference,
        inputs=tuple(inputs or ()),
        script=data_loader_script,
        metric=metric,
        metric_threshold=metric_threshold,
        baseline=baseline,
        factor=_factor(max_regression),
        check_pins=check_pins,
        update=update_baseline,
        runner=EMULATE if runner == "auto" else runner,
        repeats=repeats,
    )
    targets = [path for path in (junit, summary, sarif, baseline if update_baseline else None) if path]
    if len({path.absolute() for path in targets}) < len(targets):
        raise typer.BadParameter("two of the files to be written are the same")
    for target in targets:
        require_writable(target, keep=(*configs, *models, reference, *(inputs or ())))
    requests = [replace(base, config=path) for path in dict.fromkeys(configs)]
    with progress() as report:
        results = gate_all(requests, lambda done: report("gate", done, len(requests)))
    if update_baseline:
        _write_baselines(results)
    _say(results)
    _write_files(results, junit, summary, sarif)
    if as_json:
        from trt_helper.gate.writers.json_result import gated_json

        show_json(gated_json(results, base.runner))
    else:
        show(of(results), "", headline(results))
    raise typer.Exit(max(gated.status for gated in results))


def _require_one_meaning(configs: list[Path], models: list[Path], single: dict[str, Path | None]) -> None:
    if not configs:
        raise typer.BadParameter("give a config: trt-helper gate FILE.yaml, or --config FILE.yaml")
    if len(models) > 1:
        raise typer.BadParameter(f"{models[1]}: one model at most; others are named by their configs")
    alone = ["a model"] if models else [name for name, path in single.items() if path]
    if len(configs) > 1 and alone:
        raise typer.BadParameter(f"{alone[0]} goes with one config; give each config its own")


def _factor(text: str) -> float:
    """`1.2x` or `1.2` as a number of at least 1."""
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise typer.BadParameter(f"--max-regression {text!r} is no factor of at least 1, such as 1.2x")
    return factor


def _write_baselines(results: list[Gated]) -> None:
    """Write a baseline for each config that passes."""
    from trt_helper.errors import ConfigError
    from trt_helper.gate import baseline

    for gated in results:
        if gated.now and gated.verdict == "pass":
            try:
                stored = baseline.read(gated.baseline)
            except ConfigError:  # a damaged file, left by a merge for example, is replaced
                stored = baseline.Stored()
            baseline.write(stored.updated(gated.now), gated.baseline)


def _write_files(results: list[Gated], junit: Path | None, summary: Path | None, sarif: Path | None) -> None:
    from trt_helper.gate.writers import github
    from trt_helper.gate.writers import junit as junit_xml
    from trt_helper.gate.writers import sarif as sarif_json
    from trt_helper.gate.writers.markdown import markdown
    from trt_helper.system.files import write_atomically

    if junit:
        write_atomically(junit, junit_xml.junit(results))
    if summary:
        write_atomically(summary, markdown(results).encode())
    if sarif:
        write_atomically(sarif, sarif_json.sarif(results))
    github.append_summary(markdown(results))


def _say(results: list[Gated]) -> None:
    """Print every finding to stderr: as annotations in GitHub Actions, else as messages."""
    from trt_helper.cli.console import complain, note, warn
    from trt_helper.gate.writers import github

    if github.is_here():
        sys.stderr.write("".join(f"{line}\n" for line in github.commands(results)))
        return
    for gated in results:
        where = f"{gated.config}: " if len(results) > 1 else ""
        for finding in gated.findings:
            if finding.level == "error":
                complain(f"{where}{finding.message}", finding.fix)
            else:
                fix = f"; {finding.fix}" if finding.fix else ""
                (warn if finding.level == "warning" else note)(f"{where}{finding.message}{fix}")
