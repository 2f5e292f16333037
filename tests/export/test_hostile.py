"""Files and definitions that are damaged, wrong or malicious: nothing runs, nothing is written, two lines say why."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'trt-helper[export]'")

from safetensors.torch import save_file  # noqa: E402
from support.command_line import two_lines  # noqa: E402
from support.export_cases import INPUT, export, network, refused, saved, weights  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("export_folder")]


class Canary:
    """Unpickled without restraint, this makes a file."""

    def __reduce__(self):
        return (os.mkdir, ("canary",))


class Evaluated:
    def __reduce__(self):
        return (builtins.eval, ("__import__('os').mkdir('canary')",))


@pytest.mark.parametrize("evil", [Canary, Evaluated])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_does_not_run_it(evil, zipped):
    saved({"state_dict": weights(), "extra": evil()}, _use_new_zipfile_serialization=zipped)
    refused(export("c.pt"), "was refused, and nothing in it was run", "state_dict() instead; or if you trust")
    assert not Path("canary").exists()


def test_the_canary_sings_where_the_file_is_trusted():
    """The test above would pass on a canary that is dead."""
    saved({"state_dict": weights(), "extra": Canary()})
    assert export("c.pt", "--trust-checkpoint", "--exporter", "torchscript").status == 0
    assert Path("canary").is_dir()


def test_a_plain_pickle_that_would_run_code_does_not_run_it():
    Path("c.pkl").write_bytes(pickle.dumps(Canary()))
    result = export("c.pkl")
    assert result.status == 3
    two_lines(result.err)
    assert not Path("canary").exists()


def test_what_the_pickle_asked_for_is_named():
    saved({"state_dict": weights(), "extra": Canary()})
    assert "posix.mkdir" in export("c.pt").err


# ------------------------------------------------------------------------------------ programs (.pt2)


def program(name="p.pt2"):
    exported = torch.export.export(
        network(), (torch.zeros(2, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC(min=1, max=8)},)
    )
    torch.export.save(exported, name)
    return Path(name)


def rewritten(path, change):
    """The archive with every file's content passed through `change(name, bytes)`; None leaves a file out."""
    out = path.with_name(f"changed{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out


def test_a_program_whose_sample_inputs_would_run_code_does_not_run_it():
    """torch.export.load falls back to an unrestricted unpickler there (torch 2.13, _export/serde/serialize.py)."""
    evil = Path(saved({"x": Canary()}, "evil.pt")).read_bytes()
    bad = rewritten(program(), lambda name, content: evil if "sample_inputs" in name else content)
    refused(export(bad, model=None, inputs=()), "was refused, and nothing in it was run")
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir('canary')",
        "Symbol('s0').__class__",
        'Max(\'__import__("os").mkdir("canary")\', 1)',
        "[c for c in ()]",
        "eval('1')",
    ],
)
def test_a_program_whose_sizes_are_code_is_refused(expression):
    def change(_, content):
        if b"expr_str" not in content:
            return content
        model = json.loads(content)

        def walk(value):
            if isinstance(value, dict):
                return {k: expression if k == "expr_str" else walk(v) for k, v in value.items()}
            return [walk(item) for item in value] if isinstance(value, list) else value

        return json.dumps(walk(model)).encode()

    refused(export(rewritten(program(), change), model=None, inputs=()), "a size is the expression", "--trust")
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.serialization.os.mkdir",
        "torch.ops.load_library",
        "torch.ops.aten.__class__.mro",
        "torch.hub.load",
        "_operator.methodcaller",
    ],
)
def test_a_program_that_calls_what_is_no_operator_is_refused(target):
    def change(_, content):
        return content.replace(b"torch.ops.aten.linear.default", target.encode())

    refused(export(rewritten(program(), change), model=None, inputs=()), f"it calls {target!r}", "--trust")


def test_a_program_with_a_python_object_is_refused():
    path = program()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("p/data/constants/opaque_obj_0", pickle.dumps(Canary()))
    refused(export(path, model=None, inputs=()), "it holds a Python object", "--trust")
    assert not Path("canary").exists()


def test_a_program_with_two_files_of_one_name_is_refused():
    path = program()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("p/models/model.json", b"{}")
    refused(export(path, model=None, inputs=()), "two files of one name")


# ----------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_zip_is_said_to_be(share):
    whole = Path(saved(weights())).read_bytes()
    Path("c.pt").write_bytes(whole[: int(len(whole) * share)])
    refused(export("c.pt"), "truncated or damaged", "download it again")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.99])
def test_a_truncated_legacy_file_is_said_to_be(share):
    whole = Path(saved(weights(), _use_new_zipfile_serialization=False)).read_bytes()
    Path("c.pt").write_bytes(whole[: int(len(whole) * share)])
    refused(export("c.pt"), "truncated or damaged", "download it again")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_safetensors_file_is_said_to_be(share):
    save_file(weights(), "c.safetensors")
    whole = Path("c.safetensors").read_bytes()
    Path("c.safetensors").write_bytes(whole[: int(len(whole) * share)])
    result = export("c.safetensors")
    assert result.status == 3
    error, _ = two_lines(result.err)
    assert "truncated" in error or "is no checkpoint" in error


@pytest.mark.parametrize("make", ["script", "program"])
def test_a_damaged_program_is_said_to_be(make):
    path = program() if make == "program" else Path("t.pt")
    if make == "script":
        torch.jit.script(network()).save(path)
    keep = "code/" if make == "script" else ".json"
    bad = rewritten(path, lambda name, content: content[: len(content) // 2] if keep in name else content)
    result = export(bad, model=None, inputs=() if make == "program" else INPUT)
    assert result.status == 3
    two_lines(result.err)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello, world: no checkpoint at all", "is no checkpoint: it begins with"),
        (b"\x89HDF\r\n\x1a\n and so on", "is no checkpoint: it begins with"),
        (b"\x80\x02garbage", "truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(content, says):
    Path("c.pt").write_bytes(content)
    refused(export("c.pt"), says)


def test_another_zip_archive_is_no_checkpoint():
    with zipfile.ZipFile("c.pt", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    refused(export("c.pt"), "a zip archive, but no checkpoint: it holds word/document.xml")


def test_a_missing_file_and_a_folder_are_named():
    refused(export("nothing.pt"), "nothing.pt does not exist")
    Path("f.pt").mkdir()
    refused(export("f.pt"), "is a folder")


# ------------------------------------------------------------------------- names and shapes that differ
