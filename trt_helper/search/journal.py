"""The trials of a search on disk, so that an interrupted one goes on where it was.

One JSON object a line, appended and flushed to the disk: the first says what was searched, then a line
before each trial and one after it, also when Ctrl-C ended it. What was searched must be the same to the
last bit, or the journal is begun afresh. A trial that was begun twice and never ended took its process
with it: it is UNRESOLVED.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trt_helper.system.files import cannot_write
from trt_helper.values import Plan, TensorError, Trial, Verdict

Key = tuple[str, Plan]  # which samples, which plan
DEADLY = 2  # times that a trial may begin without an end


class Journal:
    """Owns the file. `remember` wraps an oracle so that known trials are not repeated."""

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        self.path = path
        self._header = json.dumps({"subject": subject}, sort_keys=True)
        self._known: dict[Key, Trial] = {}
        self._file: TextIO | None = None

    @property
    def trials(self) -> int:
        """How many trials were known at the start."""
        return len(self._known)

    def __enter__(self) -> Journal:
        try:
            self._file = self.path.open("a+", encoding="utf-8", newline="\n")
            whole = self._read()
            os.truncate(self.path, whole)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if not whole:
            self._append(self._header)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """The search has ended: nothing is left to go on with."""
        self.path.unlink(missing_ok=True)

    def remember(self, oracle: Callable[[Plan], Trial], samples: str) -> Callable[[Plan], Trial]:
        """`oracle` on the samples called `samples`, asked only for what the journal does not know."""

        def judge(plan: Plan) -> Trial:
            if (samples, plan) not in self._known:
                self._append(json.dumps({"begin": _plan_json(plan), "on": samples}))
                try:
                    trial = oracle(plan)
                except BaseException:  # Ctrl-C among them: the process lives, so the trial did not end it
                    self._append(json.dumps({"left": _plan_json(plan), "on": samples}))
                    raise
                self._append(json.dumps({"end": _trial_json(trial), "on": samples}))
                self._known[samples, plan] = trial
            return self._known[samples, plan]

        return judge

    def _append(self, line: str) -> None:
        if self._file is None:
            raise RuntimeError("the journal is not open")
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _read(self) -> int:
        """Learn from an older journal of the same search; returns how many of its bytes are sound."""
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what stands behind the last line end was cut by a crash
        if not lines or lines[0] != self._header.encode():
            return 0
        begun: Counter[Key] = Counter()
        whole = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                self._learn(json.loads(line), begun)
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line) + 1
        for key, count in begun.items():
            if key not in self._known and count >= DEADLY:
                why = f"it ended trt-helper {count} times"
                self._known[key] = Trial(key[1], Verdict.UNRESOLVED, why=why)
        return whole

    def _learn(self, entry: Mapping[str, Any], begun: Counter[Key]) -> None:
        if "begin" in entry:
            begun[entry["on"], _plan(entry["begin"])] += 1
        elif "left" in entry:
            begun[entry["on"], _plan(entry["left"])] -= 1
        else:
            trial = _trial(entry["end"])
            self._known[entry["on"], trial.plan] = trial


def _plan_json(plan: Plan) -> list[list[str]]:
    return [sorted(plan.fp32), sorted(plan.bf16)]


def _plan(entry: list[list[str]]) -> Plan:
    fp32, bf16 = entry
    return Plan(frozenset(fp32), frozenset(bf16))


def _trial_json(trial: Trial) -> dict[str, Any]:
    return {
        "plan": _plan_json(trial.plan),
        "verdict": trial.verdict.value,
        "outputs": [asdict(error) for error in trial.outputs],
        "excess": trial.error_ratio,
        "sample": trial.sample,
        "why": trial.why,
    }


def _trial(entry: Mapping[str, Any]) -> Trial:
    outputs = tuple(TensorError(**{**error, "worst": tuple(error["worst"])}) for error in entry["outputs"])
    return Trial(
        plan=_plan(entry["plan"]),
        verdict=Verdict(entry["verdict"]),
        outputs=outputs,
        error_ratio=float(entry["excess"]),
        sample=int(entry["sample"]),
        why=str(entry["why"]),
    )
