"""The journal keeps every verdict of a search, in memory and, where it has a path, on disk.

On disk it is one JSON object a line, appended and flushed. The first line says what is searched. Then a line is written
before each trial and one after it, also when Ctrl-C ended it. An interrupted search goes on where it was, if what is
searched is the same to the last bit; otherwise the journal begins afresh. A trial that was begun and never ended was
killed, or took its process with it. That is no verdict: it is tried again, and after some attempts the search stops.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows: two searches must not be given one file
    fcntl = None  # type: ignore[assignment]

from trt_helper.errors import NoVerdictError, OutputError
from trt_helper.search.oracle import Judgement
from trt_helper.system.files import cannot_write
from trt_helper.values import Plan, Rewrite, TensorError, Trial, Verdict

Key = tuple[str, Plan]
"""The samples and rewrites that a plan was judged with (see `label`), and the plan."""

ATTEMPTS = 3  # times that a trial may begin without an end


def label(samples: Sequence[int], rewrites: Sequence[Rewrite]) -> str:
    """The samples (by index) and rewrites of the graph that a trial belongs to, as the journal writes them."""
    return ",".join(map(str, samples)) + "".join(f" {_written(rewrite)}" for rewrite in rewrites)


def _written(rewrite: Rewrite) -> str:
    raised = f"={rewrite.op}" if rewrite.kind == "constants" and rewrite.op else ""
    return f"{rewrite.kind}:{rewrite.name}{raised}"


class Journal:
    """The verdicts of a search. A context manager that owns the file.

    Args:
        path: the file; None keeps verdicts in memory only.
        search_key: all that verdicts depend on: model, samples, tolerance, versions. JSON values.

    Raises:
        OutputError: on entering and on appending, where the file cannot be written; on entering where another search
            has it open.
    """

    def __init__(self, path: Path | None = None, search_key: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._header = json.dumps({"search": dict(search_key or {})}, sort_keys=True)
        self._known: dict[Key, Judgement] = {}
        self._unended: Counter[Key] = Counter()  # trials that were begun and never ended: how often
        self._file: TextIO | None = None

    @property
    def verdicts(self) -> int:
        """The number of verdicts that are known."""
        return len(self._known)

    def __enter__(self) -> Journal:
        if self.path is None:
            return self
        try:
            self._file = self._opened(self.path)
            sound = self._read(self.path)
            os.truncate(self.path, sound)
        except OSError as error:
            self._close()
            raise cannot_write(self.path, error) from error
        if not sound:
            try:
                self._append(self._header)
            except OutputError:  # a full disk: no empty file is left
                self.remove()
                self._close()
                raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._close()

    def _opened(self, path: Path) -> TextIO:
        """Open and lock the file. A search that ends deletes it: then the one that is there now is taken."""
        while True:
            file = path.open("a+", encoding="utf-8", newline="\n")
            try:
                _lock(file, path)
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, of which the write has told
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the file: the search has ended, and there is nothing to resume."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def judgement(self, key: Key, judge: Callable[[], Judgement]) -> Judgement:
        """The judgement under `key`: the one that is known, with no inferences, else that of `judge`.

        Raises:
            NoVerdictError: this trial began several times and never ended.
        """
        if key not in self._known:
            self._require_that_it_ends(key)
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

    def was_cut_off(self, key: Key) -> bool:
        """Whether this trial was begun in an earlier process and never ended."""
        return self._unended[key] > 0

    def _require_that_it_ends(self, key: Key) -> None:
        if self._unended[key] < ATTEMPTS:
            return
        times, self._unended[key] = self._unended[key], 0
        for _ in range(times):  # the next search tries it again as often
            self._append(json.dumps({"left": _plan_json(key[1]), "on": key[0]}))
        raise NoVerdictError(
            f"the trial with {len(key[1])} pins has no verdict: {times} times trt-helper ended in the middle of it",
            fix="it was killed, or memory ran out (--memory-limit, a smaller batch): run it again with more",
        )

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
        sound = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                self._read_entry(json.loads(line))
            except (ValueError, KeyError, TypeError):
                break
            sound += len(line) + 1
        return sound

    def _read_entry(self, entry: Mapping[str, Any]) -> None:
        if "begin" in entry:
            self._unended[entry["on"], _plan(entry["begin"])] += 1
        elif "left" in entry:
            self._unended[entry["on"], _plan(entry["left"])] -= 1
        else:
            trial = _trial(entry["end"])
            self._known[entry["on"], trial.plan] = Judgement(trial)
            del self._unended[entry["on"], trial.plan]


def _lock(file: TextIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{path} is in use: another search writes the same plan", fix="wait for it, or give another file with -o"
        ) from None
    except OSError:  # a file system without locks
        return


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
