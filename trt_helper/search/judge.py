"""The judge of a search: it asks the oracle, remembers the verdicts, and lets the held-out samples decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trt_helper.onnx_model.graph import Graph
from trt_helper.search.journal import Journal, label
from trt_helper.search.oracle import Criteria, Judgement, Oracle
from trt_helper.search.strategy import Speculative, Try, no_plans
from trt_helper.values import PerSample, Plan, Trial, Verdict

HOLD_OUT_FROM, HOLD_OUT_EVERY = 4, 4  # DESIGN.md section 5: with four samples or more, every fourth is held out
DISAGREED = "the held-out samples disagreed: the search goes on with all samples, none is held out now"


def hold_out(samples: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices of the samples to search with, and of those to hold out, of so many samples."""
    if samples < HOLD_OUT_FROM:
        return tuple(range(samples)), ()
    held_out = range(HOLD_OUT_EVERY - 1, samples, HOLD_OUT_EVERY)
    return tuple(index for index in range(samples) if index not in held_out), tuple(held_out)


class PlanJudge:
    """Judges the plans of a search over one graph. Verdicts are remembered here, in the journal, and nowhere else.

    With four or more samples a quarter is held out. The others judge first. A plan that passes there is judged on all
    samples. As soon as the held-out ones disagree, no sample is held out any longer.

    Args:
        graph: the graph that is searched.
        oracle: computes the plans.
        criteria: what they are judged by.
        journal: where verdicts are remembered.
        on_warning: called when the held-out samples disagree.
        one_sample_first: judge a plan that will probably fail on one sample first, the one that decided the last
            failure; if it fails there, no other sample is needed. Worth it where samples are what costs, and not
            builds. Never done with a metric, which is a figure of all samples together.

    Attributes:
        trials: the trials of the search, in order; each plan is tried once.
        searched: indices of the samples that judge first.
        held_out: indices of the others.
        inferences: forward passes of the whole model so far.
    """

    def __init__(
        self,
        graph: Graph,
        oracle: Oracle,
        criteria: Criteria,
        journal: Journal,
        on_warning: Callable[[str], None] = lambda _text: None,
        *,
        one_sample_first: bool = False,
    ) -> None:
        self.trials: dict[Plan, Trial] = {}
        self.searched, self.held_out = hold_out(len(criteria.samples))
        self.inferences = 0
        self._one_sample_first = one_sample_first and criteria.metric is None
        self._decisive: int | None = None  # the index of the sample that decided the last failure
        self._graph = graph
        self._oracle = oracle
        self._every_sample = criteria.every_sample
        self._journal = journal
        self._on_warning = on_warning

    @property
    def best(self) -> Trial | None:
        """The passing trial with the fewest pins, the first of equals; None as long as none has passed."""
        passed = (trial for trial in self.trials.values() if trial.verdict is Verdict.PASS)
        return min(passed, key=lambda trial: len(trial.plan), default=None)

    def known(self, plan: Plan) -> Trial | None:
        """The trial of a plan that this search has tried before."""
        return self.trials.get(plan)

    def judge(self, decision: Try) -> Trial:
        """Judge a plan for the search: on the searched samples, and where it passes on the held-out ones as well."""
        trial = self._failed_on_one(decision) or self.on(self.searched, decision.plan, decision.speculative)
        if trial.verdict is Verdict.PASS and self.held_out:
            trial = self.on_every_sample(decision.plan)
            if trial.verdict is not Verdict.PASS:
                self._on_warning(DISAGREED)
                self.searched, self.held_out = self._every_sample, ()
        self.trials[decision.plan] = trial = replace(trial, because=decision.because)
        if trial.verdict is Verdict.FAIL:
            self._decisive = self.searched[trial.sample]
        return trial

    def _failed_on_one(self, decision: Try) -> Trial | None:
        """The trial on the sample that decided the last failure, if that is enough; it may not be the worst sample."""
        if not (self._one_sample_first and decision.doubtful) or self._decisive is None or len(self.searched) == 1:
            return None
        trial = self.on((self._decisive,), decision.plan, decision.speculative)
        return None if trial.verdict is Verdict.PASS else replace(trial, sample=self.searched.index(self._decisive))

    def judge_searched(self, decision: Try) -> Trial:
        """Judge a plan for the search on the searched samples alone."""
        trial = replace(self.on(self.searched, decision.plan), because=decision.because)
        self.trials[decision.plan] = trial
        return trial

    def on_every_sample(self, plan: Plan) -> Trial:
        """Judge a plan on all samples."""
        return self.on(self._every_sample, plan)

    def on(self, samples: Sequence[int], plan: Plan, speculative: Speculative = no_plans) -> Trial:
        """Judge a plan on the samples with these indices, unless its verdict is known."""
        return self._judgement(samples, plan, speculative).trial

    def per_sample(self, plan: Plan) -> PerSample:
        """The errors of a plan on every sample; measured again where the journal's file knew only the worst."""
        known = self._judgement(self._every_sample, plan)
        if known.per_sample or known.trial.why:
            return known.per_sample
        judgement = self._oracle.judge(plan, self._every_sample)
        self.inferences += judgement.inferences
        self._journal.complete((self._label(self._every_sample), plan), judgement)
        return judgement.per_sample

    def _judgement(self, samples: Sequence[int], plan: Plan, speculative: Speculative = no_plans) -> Judgement:
        key = self._label(samples), plan
        if self._journal.was_cut_off(key):  # perhaps memory ran out: this time alone
            speculative = no_plans
        judgement = self._journal.judgement(key, lambda: self._oracle.judge(plan, samples, speculative))
        self.inferences += judgement.inferences
        return judgement

    def _label(self, samples: Sequence[int]) -> str:
        return label(samples, self._graph.rewrites)
