"""Takes every model that ONNX is tested with, and pipelines of scikit-learn, through inspect, locate and convert.

Writes build/corpus.json and docs/corpus.md: how often each command ended how, and every message of a refusal. Where
TensorRT-RTX parses a refused model and ONNX Runtime runs it, the page says so.

    python benchmarks/corpus.py                  # some twenty minutes on two cores
    python benchmarks/corpus.py --engines 0      # inspect and locate alone
    python benchmarks/corpus.py --bugs bugs.md   # add each distinct bug to this file as soon as it is met
    python benchmarks/corpus.py --page           # docs/corpus.md once more, from build/corpus.json
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sklearn_pipelines import pipelines  # noqa: E402
from support import corpus  # noqa: E402
from support.corpus import Case, Outcome, commands, exception, file_cases, frames, node_cases, outcomes  # noqa: E402

from trt_helper import __version__  # noqa: E402
from trt_helper.system.versions import versions  # noqa: E402

BUILD, PAGE = ROOT / "build" / "corpus.json", ROOT / "docs" / "corpus.md"
SEED = 20261128
COMMANDS = ("inspect", "locate", "convert --no-engine", "convert")
NOTHING: dict[str, Any] = {"commands": ()}
HEAD = """# Corpus

{models} models that others made: the tests of the onnx package, and pipelines of scikit-learn as skl2onnx writes them
({folders}).

Each went through `inspect`, `locate` (with its own inputs, --atol 1e-2, --time-limit 10) and `convert --no-engine`, and
{engines} of them, drawn by a seed, through `convert`, too. Written by `benchmarks/corpus.py` on {day} with
trt-helper {helper}, onnx {onnx}, onnxruntime {ort}, TensorRT-RTX {rtx}. `tests/cli/test_corpus.py` takes a
sample of them through the same commands whenever the tests run.

## How the commands ended

Exit statuses as in the README: 0 done, 1 the tolerance is missed, 3 refused, 4 no engine. 70, a traceback, a signal or
no end is a bug.

"""
REFUSED = """
## What was refused

Every message of exit status 3, with … for names and numbers. "runs": how many of the refused models ONNX Runtime runs
(or loads, where the inputs are no arrays of numbers). "parses": how many TensorRT-RTX's parser takes as they are.
"both": where a refusal may be needless.

"""
ARGUED = """
## Why, where ONNX Runtime runs it and the parser takes it

- *No layer can be FP16*: integers, booleans and shapes, FP32 that only moves, or all of it in the body of a Loop or
  Scan. There is nothing to judge and nothing that FP16 would make faster; "accurate" would be said of nothing.
- *float8, int4 inputs*, and outputs of these types: quantised models are not read yet.
- *NaN in an input*: no precision can be judged by it. (`IsNaN`, `IsInf`: tests of ONNX, not models.)
- *Every output is empty*: the same.
- *A Scan alone* (LinearAttention, opset 27): ONNX Runtime runs the Scan as part of the whole model, and not the layer
  by itself.
- *The values of an input set shapes*: a profile needs them; `--inputs` or `--shapes NAME:VALUES` gives them.

"""
UNBUILT = """
## What was not built

The messages of exit status 4. "parses": how many TensorRT-RTX's parser takes as they are, before they are typed.

"""
BUGS = """
## Bugs

"""


def all_cases() -> list[Case]:
    """Every model."""
    return [*node_cases(), *file_cases(), *pipelines()]


def main() -> int:
    """Run the commands, write the results and the page. Leaves with 1 if there was a bug."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=200, help="models that an engine is built of, drawn by a seed")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one command")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="run these, keep the results of the others")
    parser.add_argument("--bugs", type=Path, help="a file that each distinct bug is added to")
    parser.add_argument("--page", action="store_true", help="write the page from the results that are there")
    asked = parser.parse_args()
    if not asked.page:
        measure(asked)
    rows = json.loads(BUILD.read_text(encoding="utf-8"))
    if not asked.only:
        PAGE.write_text("".join(page(rows)), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(any(outcome(one).is_bug for row in rows for one in row["commands"]))


def measure(asked: argparse.Namespace) -> None:
    """Run the commands on every model and write build/corpus.json; Ctrl-C leaves what there is."""
    cases = [case for case in all_cases() if asked.only in case.name]
    names = [case.name for case in cases]
    drawn = frozenset(random.Random(SEED).sample(names, min(asked.engines, len(names))))  # noqa: S311
    wanted = asked.commands.split(",")
    rows = {row["name"]: row for row in json.loads(BUILD.read_text(encoding="utf-8"))} if BUILD.is_file() else {}
    corpus.warm_up(cases[0])
    known: set[str] = set()
    try:
        for index, case in enumerate(cases, start=1):
            words = [one for one in commands(case, engine=case.name in drawn) if corpus.named(one) in wanted]
            found = outcomes(case, words, limit=asked.limit)
            rows[case.name] = merged(case, found, rows.get(case.name), wanted)
            for one in found:
                if one.is_bug and (key := distinct(one)) not in known:
                    known.add(key)
                    report(case, one, asked.bugs)
            if index % 100 == 0:
                print(f"{index} of {len(cases)}: {case.name}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the results are incomplete")
    refused = [
        case for case in cases if any(one["status"] in (3, 4) for one in rows.get(case.name, NOTHING)["commands"])
    ]
    for name, (runs, parses) in corpus.elsewhere(refused, limit=60).items():
        rows[name] |= {"onnxruntime runs": runs, "tensorrt-rtx parses": parses}
    BUILD.parent.mkdir(exist_ok=True)
    BUILD.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {BUILD.relative_to(ROOT)}")


def distinct(one: Outcome) -> str:
    """What two ends of commands have in common if they are the same bug."""
    return " ".join([f"{one.command}: {one.status}", exception(one.traceback), *frames(one.traceback)])


def report(case: Case, one: Outcome, file: Path | None) -> None:
    """Print a bug, and add it to the file."""
    lines = [
        f"## {one.command}: {exception(one.traceback) or one.status}",
        f"- model: {case.name} ({', '.join(case.operators)})",
        f"- status: {one.status}",
        *(f"- {frame}" for frame in frames(one.traceback)),
        "",
    ]
    print("\n".join(lines), flush=True)
    if file:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")


def merged(
    case: Case, found: Sequence[Outcome], earlier: dict[str, Any] | None, wanted: Sequence[str]
) -> dict[str, Any]:
    """One model as it is in the JSON file: the new results, and the earlier ones of other commands."""
    kept = [one for one in (earlier or NOTHING)["commands"] if one["command"] not in wanted]
    made = [asdict(one) | {"seconds": round(one.seconds, 3)} for one in found]
    return {
        "name": case.name,
        "operators": list(case.operators),
        "opsets": {opset.domain: opset.version for opset in case.model.opset_import},
        "inputs": case.feed is not None,
        "commands": sorted([*kept, *made], key=lambda one: COMMANDS.index(one["command"])),
    }


def outcome(one: dict[str, Any]) -> Outcome:
    """The outcome of which the file has the fields."""
    return Outcome(**one)


# ------------------------------------------------------------------------------------------------------ page


def page(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The text of docs/corpus.md."""
    used = versions()
    folders = Counter(row["name"].partition("/")[0] for row in rows)
    yield HEAD.format(
        models=len(rows),
        engines=sum(one["command"] == "convert" for row in rows for one in row["commands"]),
        folders=", ".join(f"{name} {count}" for name, count in folders.items()),
        day=date.today().isoformat(),
        helper=__version__,
        onnx=version("onnx"),
        ort=used["onnxruntime"],
        rtx=version("tensorrt_rtx"),
    )
    yield from _table(("command", "status", "models"), _counts(rows))
    yield REFUSED
    yield from _table(("says", "commands", "models", "runs", "parses", "both", "such as"), _messages(rows, 3))
    yield ARGUED
    yield UNBUILT
    yield from _table(("says", "commands", "models", "runs", "parses", "both", "such as"), _messages(rows, 4))
    yield BUGS
    bugs: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for one in map(outcome, row["commands"]):
            if one.is_bug:
                bugs[distinct(one)].append(row["name"])
    yield from _table(("bug", "models", "such as"), [(key, len(names), names[0]) for key, names in bugs.items()])
    if not bugs:
        yield "None.\n"


def _counts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    counts = Counter((one["command"], str(one["status"])) for row in rows for one in row["commands"])
    return [(*key, counts[key]) for key in sorted(counts, key=lambda key: (COMMANDS.index(key[0]), key[1]))]


def _messages(rows: Sequence[dict[str, Any]], status: int) -> list[tuple[object, ...]]:
    """For each message: by which commands, of how many models, and what becomes of those elsewhere."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    by: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for one in row["commands"]:
            if one["status"] == status:
                found[anonymous(one["says"])][row["name"]] = row
                by[anonymous(one["says"])][one["command"]] = None
    lines: list[tuple[object, ...]] = []
    for says, models in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        runs = [bool(row.get("onnxruntime runs")) for row in models.values()]
        parses = [bool(row.get("tensorrt-rtx parses")) for row in models.values()]
        both = [one and other for one, other in zip(runs, parses, strict=True)]
        such = next((name for name, needless in zip(models, both, strict=True) if needless), next(iter(models)))
        lines.append((says, ", ".join(by[says]), len(models), sum(runs), sum(parses), sum(both), such))
    return lines


def anonymous(message: str) -> str:
    """A message with … for the names, paths and numbers of one model."""
    text = re.sub(r"'[^']*'", "…", message)
    text = re.sub(r"/[\w./-]+", "…", text)
    text = re.sub(r"\[[\d, ]*\]|\b\d[\d.,]*\b", "…", text)
    text = re.sub(r"\s+", " ", text).replace("|", r"\|")
    return text if len(text) <= 200 else f"{text[:199]}…"


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> Iterator[str]:
    if lines:
        for line in (head, ["---"] * len(head), *lines):
            yield f"| {' | '.join(map(str, line))} |\n"


if __name__ == "__main__":
    sys.exit(main())
