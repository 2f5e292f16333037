"""Six changes pushed through the gate in a scratch repository, whose CI is what the README says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from support.gate_models import NORM, SQUARE, write_model, write_project
from support.schemas import require_valid

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```yaml\n# (\S+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SNIPPETS = {name: yaml.load(text, yaml.BaseLoader) for name, text in BLOCKS}  # noqa: S506 - `on` is a word there
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GIT, BASH = shutil.which("git") or "git", shutil.which("bash") or "bash"
WORKFLOW = ".github/workflows/precision.yml"


def environment(**more):
    """Of a fresh CI job: `trt-helper` is installed, nothing is known."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **more}


def git(*words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    subprocess.run([GIT, *identity, *words], check=True, capture_output=True, text=True)


def started(words, **variables):
    """Run a command in the environment of a fresh CI job."""
    env = environment(**variables)
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def gitlab():
    """Run the job of the README's .gitlab-ci.yml; returns its result and the files that it keeps."""
    job = SNIPPETS[".gitlab-ci.yml"]["gate"]
    script = "\n".join(["set -eo pipefail", *job["script"]])
    result = started([BASH, "-c", script])
    return result, [Path(job["artifacts"]["reports"]["junit"]), *map(Path, job["artifacts"]["paths"])]


def github():
    """Run the step of the README's workflow that uses `action.yml`, as GitHub would; trt-helper is installed."""
    (step,) = [s for s in SNIPPETS[WORKFLOW]["jobs"]["gate"]["steps"] if "trt-helper" in s["uses"]]
    inputs = {name: step["with"].get(name, value.get("default", "")) for name, value in ACTION["inputs"].items()}
    assert step["with"].keys() <= inputs.keys()
    (gate,) = [s for s in ACTION["runs"]["steps"] if s.get("name") == "gate"]
    given = {name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: inputs[m[1]], v) for name, v in gate["env"].items()}
    given |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "step.md", "TRT_HELPER_CACHE": "cache"}
    result = started([BASH, "--noprofile", "--norc", "-eo", "pipefail", "-c", gate["run"]], **given)
    return result, [Path(inputs["junit"]), Path(inputs["sarif"]), Path("step.md")]


def nothing_changed():
    pass


def weights_retrained():
    write_model(retrained=0.01)


def layer_renamed():
    write_model(square="/norm/Power")


def weight_scaled():
    write_model(head=1e6)


def pin_removed():
    config = Path("configs/net.yaml")
    config.write_text(config.read_text().replace(f"- {SQUARE}\n", "", 1))


def pin_no_longer_needed():
    write_model(gain=3.0)


CHANGES = [  # what is changed, exit status, what is said of it, failures and errors in JUnit
    (nothing_changed, 0, [], (0, 0)),
    (weights_retrained, 0, ["the model has changed since the plan was made"], (0, 0)),
    (layer_renamed, 3, [f"no layer named '{SQUARE}'", "did you mean '/norm/Power'?", "trt-helper locate"], (0, 1)),
    (weight_scaled, 1, ["elements are", "layer 'head': ", "become infinite, and none in the baseline"], (3, 0)),
    (pin_removed, 1, ["output 'y': max error", "no longer in it", SQUARE], (3, 0)),
    (pin_no_longer_needed, 0, [f"pin {name!r} is no longer needed" for name in NORM], (0, 0)),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """models/, samples/, configs/ with plan and baseline, committed."""
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRT_HELPER_CACHE", str(folder.parent / "cache"))
        write_project()
        subprocess.run(
            [sys.executable, "-m", "trt_helper", "gate", "configs/net.yaml", "--update-baseline"], check=True
        )
        git("init")
        git("add", ".")
        git("commit", "-m", "a plan")
    return folder


@pytest.mark.parametrize("ci", [gitlab, github])
@pytest.mark.parametrize(("change", "status", "said", "junit"), CHANGES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_change_goes_through_the_gate(repository, tmp_path, monkeypatch, ci, change, status, said, junit):
    git("clone", str(repository), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    change()
    git("commit", "--all", "--allow-empty", "-m", change.__name__)
    result, kept = ci()
    assert result.returncode == status, result.stderr
    assert all(text in result.stderr.replace("%0A", "\n") for text in said), result.stderr
    assert bool(said) == bool(result.stderr)
    assert all(file.stat().st_size for file in kept)
    (suite,) = ET.parse(kept[0]).getroot()  # noqa: S314 - written by the gate
    assert (int(suite.get("failures")), int(suite.get("errors"))) == junit
    (summary,) = [file.read_text() for file in kept if file.suffix == ".md"]
    assert ("the plan is accurate" in summary) == (status == 0)
    assert all(text.replace("'", "") in summary.replace("'", "") for text in said)


def test_the_snippets_are_what_their_systems_take():
    require_valid(ACTION, "GitHub Action")
    require_valid(SNIPPETS[WORKFLOW], "GitHub Workflow")
    require_valid(SNIPPETS[".gitlab-ci.yml"], "gitlab-ci")
    require_valid(SNIPPETS[".pre-commit-config.yaml"], ".pre-commit-config.yml")


def test_no_expression_of_github_stands_in_a_script():
    """Their text would be run; it goes through the environment."""
    assert all("${{" not in step.get("run", "") for step in ACTION["runs"]["steps"])


def test_the_pre_commit_hook_runs_the_gate(repository, tmp_path, monkeypatch):
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    require_valid(hooks, ".pre-commit-hooks.yml")
    (hook,) = hooks
    (used,) = SNIPPETS[".pre-commit-config.yaml"]["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    for file in ("models/net.onnx", "samples/0.npz", "configs/net.yaml"):
        assert re.search(hook["files"], file)
    assert hook["pass_filenames"] is False
    git("clone", str(repository), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    words = [*hook["entry"].split(), *(arg.replace("fp32_layers", "net") for arg in used["args"])]
    assert started(words, TRT_HELPER_CACHE="cache").returncode == 0
    pin_removed()
    assert started(words, TRT_HELPER_CACHE="cache").returncode == 1
