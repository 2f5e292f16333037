"""The journal keeps every verdict of a search, in memory and, where it has a path, on disk.

On disk it is one JSON object a line, appended and flushed. The first line says what is searched. Then a line is written
before each trial and one after it, also when Ctrl-C ended it. An interrupted search goes on where it was, if what is
searched is the same to the last bit; otherwise the journal begins afresh. A trial that was begun twice and never ended
took its process with it: it is UNRESOLVED.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trt_helper.search.oracle import Judgement
from trt_helper.system.files import cannot_write
from trt_helper.values import Plan, Rewrite, TensorError, Trial, Verdict

Key = tuple[str, Plan]
"""The samples and rewrites that a plan was judged with (see `label`), and the plan."""

DEADLY = 2  # times that a trial may begin without an end


def label(samples: Sequence[int], rewrites: Sequence[Rewrite]) -> str:
    """The samples (by index) and rewrites of the graph that a trial belongs to, as the journal writes them."""
    return ",".join(map(str, samples)) + "".join(f" {rewrite.kind}:{rewrite.name}" for rewrite in rewrites)


class Journal:
    """The verdicts of a search. A context manager that owns the file.

    Args:
        path: the file; None keeps verdicts in memory only.
        search_key: all that verdicts depend on: model, samples, tolerance, versions. JSON values.

    Raises:
        OutputError: on entering and on appending, where the file cannot be written.
    """

    def __init__(self, path: Path | None = None, search_key: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._header = json.dumps({"search": dict(search_key or {})}, sort_keys=True)
        self._known: dict[Key, Judgement] = {}
        self._file: TextIO | None = None

    @property
    def verdicts(self) -> int:
        """The number of verdicts that are known."""
        return len(self._known)

    def __enter__(self) -> Journal:
        if self.path is None:
            return self
        try:
            self._file = self.path.open("a+", encoding="utf-8", newline="\n")
            sound = self._read(self.path)
            os.truncate(self.path, sound)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if not sound:
            self._append(self._header)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the file: the search has ended, and there is nothing to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def judgement(self, key: Key, judge: Callable[[], Judgement]) -> Judgement:
        """The judgement under `key`: the one that is known, with no inferences, else that of `judge`."""
        if key not in self._known:
            entry = {"begin": _plan_json(key[1]), "on": key[0]}
            self._append(json.dumps(entry))
            try:
                judgement = judge()
            except BaseException:  # Ctrl-C among them: the process lives, so the trial did not end it
                self._append(json.dumps({"left": entry["begin"], "on": key[0]}))
                raise
            self._append(json.dumps({"end": _trial_json(judgement.trial), "on": key[0]}))
            self._known[key] = replace(judgement, inferences=0)
            return judgement
        return self._known[key]

    def complete(self, key: Key, judgement: Judgement) -> None:
        """Replace a judgement whose errors per sample are not known: the file holds trials only."""
        self._known[key] = replace(judgement, trial=self._known[key].trial, inferences=0)

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(Path(self._file.name), error) from error

    def _read(self, path: Path) -> int:
        """Read the verdicts of an earlier journal of the same search; returns how many of its bytes are sound."""
        lines = path.read_bytes().split(b"\n")[:-1]  # a crash may have cut the last line
        if not lines or lines[0] != self._header.encode():
            return 0
        begun: Counter[Key] = Counter()
        sound = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                self._read_entry(json.loads(line), begun)
            except (ValueError, KeyError, TypeError):
                break
            sound += len(line) + 1
        for key, count in begun.items():
            if key not in self._known and count >= DEADLY:
                why = f"it ended trt-helper {count} times"
                self._known[key] = Judgement(Trial(key[1], Verdict.UNRESOLVED, why=why))
        return sound

    def _read_entry(self, entry: Mapping[str, Any], begun: Counter[Key]) -> None:
        if "begin" in entry:
            begun[entry["on"], _plan(entry["begin"])] += 1
        elif "left" in entry:
            begun[entry["on"], _plan(entry["left"])] -= 1
        else:
            trial = _trial(entry["end"])
            self._known[entry["on"], trial.plan] = Judgement(trial)


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
        "error_ratio": trial.error_ratio,
        "sample": trial.sample,
        "why": trial.why,
    }


def _trial(entry: Mapping[str, Any]) -> Trial:
    outputs = tuple(TensorError(**{**error, "worst": tuple(error["worst"])}) for error in entry["outputs"])
    return Trial(
        plan=_plan(entry["plan"]),
        verdict=Verdict(entry["verdict"]),
        outputs=outputs,
        error_ratio=float(entry["error_ratio"]),
        sample=int(entry["sample"]),
        why=str(entry["why"]),
    )
