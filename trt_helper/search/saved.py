"""The files of a search that is under way: the best plan so far, and the journal to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trt_helper.config.plan_file import Config, write_config
from trt_helper.errors import NoVerdictError, TrtHelperError
from trt_helper.format.json_values import tolerance_json
from trt_helper.inputs.metric import Metric
from trt_helper.inputs.sample import Sample, digest
from trt_helper.inputs.shapes import ranges_of
from trt_helper.onnx_model.graph import Graph
from trt_helper.search.journal import Journal
from trt_helper.search.located import Located, evidence
from trt_helper.system.versions import versions
from trt_helper.values import Plan, Tolerance, Trial, Verdict


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a search.

    Attributes:
        best: the passing plan with the fewest pins so far; None where no plan smaller than everything has passed.
        output: the file that holds it.
    """

    def __init__(self, best: Plan | None, output: Path) -> None:
        super().__init__()
        self.best = best
        self.output = output


class SavedSearch:
    """Keeps the best plan so far in a YAML file, and the journal beside it.

    Args:
        output: the YAML file; its folder exists.
        provenance: what else the file's evidence says: where the samples came from, which runner judged.
        exclude_tactics: TRT_EXCLUDE_TACTIC of the file.
    """

    def __init__(
        self,
        output: Path,
        provenance: Mapping[str, Any] | None = None,
        exclude_tactics: tuple[Mapping[str, Any], ...] = (),
    ) -> None:
        self.output = output
        self.best: Plan | None = None
        self._provenance = dict(provenance or {})
        self._tactics = exclude_tactics
        self._tolerance = Tolerance()
        self._shapes: dict[str, list[list[int]]] = {}
        self._graph: Graph | None = None

    @contextmanager
    def journal(
        self, graph: Graph, samples: Sequence[Sample], tolerance: Tolerance, metric: Metric | None
    ) -> Iterator[Journal]:
        """Open the journal of a search.

        Raises:
            SearchInterrupted: in place of KeyboardInterrupt; journal and best plan stay on disk.
            NoVerdictError: as it is; the journal stays, the next search tries that trial again.
            OutputError: another search writes the same file.
            TrtHelperError: as it is; no journal is left, because the same error would come again.
        """
        self._tolerance = tolerance
        self._shapes = {name: [list(shape) for shape in shapes] for name, shapes in ranges_of(graph, samples).items()}
        key = self.search_key(graph, samples, tolerance, metric)
        journal = Journal(self.output.with_name(f"{self.output.name}.journal"), key)
        with journal:
            try:
                yield journal
            except KeyboardInterrupt:
                raise SearchInterrupted(self.best, self.output) from None
            except NoVerdictError:
                raise
            except TrtHelperError:
                journal.remove()
                raise

    def search_key(
        self, graph: Graph, samples: Sequence[Sample], tolerance: Tolerance, metric: Metric | None
    ) -> dict[str, Any]:
        """All that the verdicts of a search depend on."""
        runner = self._provenance.get("runner")
        return {
            "model": graph.source.sha256,
            "samples": digest([sample.feed for sample in samples]),
            "tolerance": tolerance_json(tolerance),
            "metric": [metric.name, metric.threshold] if metric else None,
            "versions": versions(),
            **{name: self._provenance[name] for name in ("judged-with", "margin") if name in self._provenance},
            **({"runner": runner, "tactics": [dict(one) for one in self._tactics]} if runner else {}),
        }

    def offer(self, graph: Graph, trial: Trial) -> None:
        """Save the plan of a trial if it passes with fewer pins than all before it on the same graph."""
        if graph is not self._graph:
            self._graph, self.best = graph, None
        least = len(graph.candidates if self.best is None else self.best)
        if trial.verdict is Verdict.PASS and len(trial.plan) < least:
            self.best = trial.plan
            self._write(graph, trial.plan, {"minimal": False})

    def finish(self, located: Located, journal: Journal) -> None:
        """Save the answer with its evidence; nothing is left to resume."""
        self._write(located.graph, located.plan, evidence(located))
        journal.remove()

    def _write(self, graph: Graph, plan: Plan, found: Mapping[str, Any]) -> None:
        config = Config(
            model=graph.source.path,
            sha256=graph.source.sha256,
            fp32_layers=graph.in_order(plan.fp32),
            exclude_tactics=self._tactics,
            rewrites=graph.rewrites,
            bf16_layers=graph.in_order(plan.bf16),
            tolerance=self._tolerance,
            evidence={**found, "shapes": self._shapes, **self._provenance},
        )
        write_config(config, self.output)
