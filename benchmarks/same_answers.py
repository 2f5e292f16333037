"""Whether two versions of trt-helper give the same answers: `python benchmarks/same_answers.py --help`.

    python benchmarks/same_answers.py models build/models             # the zoo and ../shared, once, with their inputs
    python benchmarks/same_answers.py record OLD build/models build/old  # OLD: a checkout of the version to run
    python benchmarks/same_answers.py record . build/models build/new
    python benchmarks/same_answers.py compare build/old build/new     # leaves with 1 where anything differs

Only the command line is used, so that the inside may change freely. For each model that is `inspect`, `locate` (JSON,
YAML and run record), `convert --no-engine` (the typed ONNX) and `gate`. Compared is every byte but those that tell
when and where a command ran.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TOLERANCES = {  # shared model -> atol of each run
    "magika_standard_v3_3": (0.05, 0.01, 0.001),
    "gtcrn_simple": (0.02, 0.01),
    "yunet_n_dynamic": (0.05, 0.01),
    "ultraface_rfb_320": (0.01, 0.002),
    "silero_vad_16k_op15": (0.01, 0.0003),
    "mnist": (0.1, 0.005),
    "ppocrv3_det": (0.05,),
}
CURES = ("", "constants,norms,pins", "pins,bf16")  # values of --cures; the first one is the default
CHANGING = frozenset(("seconds", "date", "argv", "reproduce"))
TIMES = re.compile(r"\d+\.\d+ s\b")
TRACEBACK = re.compile(r"Traceback \(.*\n(?: .*\n)+")  # files and lines move


def write_models(folder: Path) -> None:
    """Write every model with its inputs and the tolerance it is to be judged by."""
    from support import zoo_cases  # noqa: F401, PLC0415 - registers the cases; it is one of the tests' files
    from support.zoo import CASES  # noqa: PLC0415

    for name, case in CASES.items():
        _write(folder / f"zoo-{name}", case.make(), case.samples(0), (case.atol,))
    for name, tolerances in TOLERANCES.items():
        source = SHARED / "models" / name
        if source.is_dir():
            target = folder / f"shared-{name}"
            shutil.copytree(source, target, dirs_exist_ok=True)
            (target / "tolerances.json").write_text(json.dumps(tolerances))
    for source in sorted((SHARED / "cases").glob("*/")) if SHARED.is_dir() else ():
        target = folder / f"case-{source.name}"
        shutil.copytree(source, target, dirs_exist_ok=True)
        (target / "tolerances.json").write_text(json.dumps([0.02]))


def _write(folder: Path, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tolerances: tuple[float]) -> None:
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    for index, feed in enumerate(feeds):
        np.savez(folder / "inputs" / f"{index}.npz", **feed)
    (folder / "tolerances.json").write_text(json.dumps(tolerances))


def record(checkout: Path, models: Path, results: Path, jobs: int) -> None:
    """Run `checkout`'s commands on every model; what they answer goes to `results`, one JSON file a model."""
    results.mkdir(parents=True, exist_ok=True)
    folders = sorted(folder for folder in models.iterdir() if (folder / "tolerances.json").is_file())
    with ThreadPoolExecutor(jobs) as pool:
        for folder, found in zip(folders, pool.map(lambda f: _answers(checkout, f), folders), strict=True):
            (results / f"{folder.name}.json").write_text(json.dumps(found, indent=1, sort_keys=True))
            print(f"{folder.name}: {len(found)} answers", flush=True)


def _answers(checkout: Path, folder: Path) -> dict[str, Any]:
    inputs = ["--inputs", "inputs"] if (folder / "inputs").is_dir() else []
    found = {"inspect": _run(checkout, folder, "inspect", "model.onnx", "--json")}
    short = folder.name.startswith("shared") and "magika" not in folder.name  # cures of the others take minutes
    for atol in json.loads((folder / "tolerances.json").read_text()):
        for cures in CURES[:1] if short else CURES:
            name = f"atol {atol} cures {cures}"
            plan = f"plan-{atol}-{cures.replace(',', '_') or 'pins'}"
            more = ["--cures", cures] if cures else []
            locate = ["locate", "model.onnx", *inputs, "--atol", str(atol), "--rtol", "0", *more, "-o", f"{plan}.yaml"]
            found[f"{name}: locate"] = _run(checkout, folder, *locate, "--json")
            for file in (f"{plan}.yaml", f"{plan}.run.json"):
                found[f"{name}: {file}"] = _file(folder / file)
            if not (folder / f"{plan}.yaml").is_file():
                continue
            convert = ["convert", "--config", f"{plan}.yaml", "--no-engine", "--typed-onnx", f"{plan}.typed.onnx"]
            found[f"{name}: convert"] = _run(checkout, folder, *convert, "--json")
            found[f"{name}: typed"] = _digest(folder / f"{plan}.typed.onnx")
            found[f"{name}: gate"] = _run(checkout, folder, "gate", "--config", f"{plan}.yaml", "--json")
    return found


def _run(checkout: Path, folder: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "TRT_HELPER_CACHE": str(folder / "cache")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "trt_helper", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    try:
        said = _steady(json.loads(done.stdout))
    except ValueError:
        said = done.stdout
    stderr = TRACEBACK.sub("a traceback\n", done.stderr)
    return {"status": done.returncode, "stdout": said, "stderr": TIMES.sub("- s", stderr)}


def _steady(value: Any) -> Any:
    """`value` without what changes from run to run."""
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in CHANGING}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def _file(path: Path) -> Any:
    if not path.is_file():
        return None
    return _steady(json.loads(path.read_text())) if path.suffix == ".json" else path.read_text()


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def compare(old: Path, new: Path) -> int:
    """Print every answer that is not the same; how many there are is the exit status, 1 at most."""
    names = sorted({path.name for folder in (old, new) for path in folder.glob("*.json")})
    same = different = missing = 0
    for name in names:
        a, b = (json.loads((folder / name).read_text()) if (folder / name).is_file() else {} for folder in (old, new))
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                missing += 1
            elif a[key] == b[key]:
                same += 1
            else:
                different += 1
                print(f"{name} {key}:")
                for where, left, right in _differences(a[key], b[key], ""):
                    print(f"  {where or '.'}: {left!r:.150} -> {right!r:.150}")
    print(f"{len(names)} models, {same} answers are the same, {different} are not, {missing} are in one folder only")
    return int(different > 0)


def _differences(a: Any, b: Any, where: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [one for key in keys for one in _differences(a.get(key), b.get(key), f"{where}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [one for index, (x, y) in pairs for one in _differences(x, y, f"{where}[{index}]")]
    return [] if a == b else [(where, a, b)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models").add_argument("folder", type=Path)
    recorder = commands.add_parser("record")
    for name in ("checkout", "models", "results"):
        recorder.add_argument(name, type=Path)
    recorder.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    comparer = commands.add_parser("compare")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.command == "models":
        write_models(given.folder)
        return 0
    if given.command == "record":
        record(given.checkout, given.models, given.results, given.jobs)
        return 0
    return compare(given.old, given.new)


if __name__ == "__main__":
    sys.exit(main())
