"""A checkpoint from somewhere else acts on nothing: no memory, no file, no code beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'trt-helper[export]'")

from support.export_cases import INPUT, export, network, refused, saved, source, weights  # noqa: E402

from trt_helper.errors import ModelError  # noqa: E402
from trt_helper.export.checkpoint import NonTensor, read_checkpoint  # noqa: E402
from trt_helper.export.untrusted import computes, require_plain_script  # noqa: E402
from trt_helper.export.user_code import importable  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("export_folder")]


class Calls:
    """Unpickled, this calls a function with arguments."""

    def __init__(self, *what):
        self.what = what

    def __reduce__(self):
        return self.what


# ------------------------------------------------------------------------------------------- pickles


def test_numpy_makes_no_pointers_out_of_the_bytes_of_a_checkpoint():
    """np.ndarray((1,), 'O', bytearray) is an array of Python objects at addresses of the file's choice."""
    saved({"state_dict": weights(), "extra": Calls(np.ndarray, ((1,), "O", bytearray(b"\x10\0\0\0\0\0\0\0")))})
    found = read_checkpoint(Path("c.pt")).content
    assert type(found["extra"]) is NonTensor
    assert export("c.pt", "--exporter", "torchscript").status == 0


EXTRAS = {
    "float64": np.float64(3),
    "float32": np.float32(2),
    "bool": np.bool_(1),
    "array": np.zeros(3),
    "objects": np.array([{}, 1], dtype=object),
    "dtype": np.dtype("f4"),
    "path": Path("x"),
    "options": Namespace(width=3),
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_what_training_scripts_leave_beside_the_weights_is_no_obstacle(kind):
    saved({"state_dict": weights(), "extra": EXTRAS[kind]})
    assert type(read_checkpoint(Path("c.pt")).content["extra"]) is NonTensor


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory elsewhere")
@pytest.mark.parametrize("bomb", [(bytearray, (1 << 36,)), (torch.Tensor, (1 << 34,))], ids=["bytearray", "tensor"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_small_file_takes_no_large_memory(bomb, zipped):
    saved({"state_dict": weights(), "extra": Calls(*bomb)}, _use_new_zipfile_serialization=zipped)
    refused(export("c.pt"), "memory")


# --------------------------------------------------------------------------------------- TorchScript


class Plain(torch.nn.Module):
    """What scripts are made of: recurrent layers, branches, loops, lists, dictionaries, functions, assertions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU())
        self.rnn = torch.nn.LSTM(6, 4)
        self.attention = torch.nn.MultiheadAttention(4, 2)

    def forward(self, x):
        y, _ = self.rnn(self.body(x))
        y = torch.nn.functional.gelu(y)
        parts = [y]
        while len(parts) < 3:
            parts.append(y * 2)
        named = {"sum": torch.einsum("ij->i", parts[0])}
        assert len(parts) == 3, "three"
        if float(y.sum()) > 0:
            y = y + 1
        y, _ = self.attention(y, y, y)
        return torch.cat(parts) + named["sum"].sum() + y.sum()


class Reads(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("secret", False, 4, dtype=torch.float32).sum()


class Writes(torch.nn.Module):
    def forward(self, x):
        torch.save(x, "canary")
        return x


class Loads(torch.nn.Module):
    """The code runs when the file is loaded, before anything is called."""

    @torch.jit.export
    def __getstate__(self):
        return (1, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]):
        torch.save(torch.zeros(1), "canary")
        self.training = state[1]

    def forward(self, x):
        return x


class Hides(torch.nn.Module):
    """A method of its own has the operator's name."""

    def save(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "canary")
        return x

    def forward(self, x):
        return self.save(x)


def script(module):
    torch.jit.script(module.eval()).save("s.pt")
    return Path("s.pt")


def test_a_script_of_everything_ordinary_is_let_through():
    require_plain_script(script(Plain()))
    torch.jit.optimize_for_inference(torch.jit.script(torch.nn.Conv2d(3, 3, 3).eval())).save("frozen.pt")
    require_plain_script(Path("frozen.pt"))
    torch.jit.trace(network(), torch.zeros(2, 6)).save("traced.pt")
    require_plain_script(Path("traced.pt"))


@pytest.mark.parametrize(
    ("module", "names"),
    [(Reads, "from_file"), (Writes, "save"), (Loads, "save"), (Hides, "save")],
    ids=["reads a file", "writes a file", "while it is loaded", "under a name of its own"],
)
def test_a_script_that_touches_files_is_refused_and_not_loaded(module, names):
    Path("secret").write_bytes(b"0123456789abcdef")
    refused(export(script(module()), model=None), repr(names), "--trust-checkpoint")
    assert not Path("canary").exists()
    assert not Path("out.onnx").exists()


def with_code(change):
    """A script whose code passed through `change`."""
    script(Writes())
    with zipfile.ZipFile("s.pt") as old, zipfile.ZipFile("changed.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".py") and b"torch.save" in content:
                content = change(content.decode()).encode()
            new.writestr(name, content)
    return Path("changed.pt")


@pytest.mark.parametrize(
    "spelled",
    ['_9 = torch.save\n    _8 = _9(x, "canary")', '_8 = getattr(x, "save")("canary")', '_8 = (x).save("canary")'],
    ids=["in a variable", "getattr", "method"],
)
def test_no_spelling_of_an_operator_gets_through(spelled):
    def change(code):
        line = next(line for line in code.splitlines() if "torch.save" in line)
        return code.replace(line, "    " + spelled)

    with pytest.raises(ModelError, match="'save'"):
        require_plain_script(with_code(change))


@pytest.mark.parametrize("spelled", ["ops.c10d.allreduce_(x)", "ops.no_such.operator(x)", "ops.aten.save(x, 'c')"])
def test_operators_of_other_namespaces_are_refused(spelled):
    def change(code):
        line = next(line for line in code.splitlines() if "torch.save" in line)
        return code.replace(line, f"    _8 = {spelled}")

    with pytest.raises(ModelError, match="was refused"):
        require_plain_script(with_code(change))


@pytest.mark.parametrize("alias", ["ops", "ops.c10d", 'getattr(ops, "c10d")'])
def test_an_operator_behind_another_name_and_a_method_that_is_called_like_it_is_refused(alias):
    """The method makes `allreduce_` a name of the file's own, and the variable hides whose it is."""

    def change(code):
        line = next(line for line in code.splitlines() if "torch.save" in line)
        method = "\n  def allreduce_(self: __torch__.Other, x: Tensor) -> Tensor:\n    return x\n"
        return code.replace(line, f"    _7 = {alias}\n    _8 = _7.allreduce_(x)") + method

    with pytest.raises(ModelError, match="was refused"):
        require_plain_script(with_code(change))


@pytest.mark.parametrize(
    "spelled", [b"__torch__.torch.classes.c10d\nTCPStore", b"__torch__.torch\nclasses.c10d.TCPStore"]
)
def test_a_class_of_another_library_is_refused(spelled):
    path = script(Plain())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("s/constants2.pkl", b"\x80\x02c__torch__." + spelled + b"\n.")
    with pytest.raises(ModelError, match=r"torch\.classes\.c10d"):
        require_plain_script(path)


def test_a_second_member_that_differs_by_case_is_refused():
    """PyTorch's reader ignores case, Python's does not: one would check what the other does not run."""
    path = script(Plain())
    with zipfile.ZipFile(path) as archive:
        code = next(name for name in archive.namelist() if name.endswith(".py"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(code.upper(), "pass")
    with pytest.raises(ModelError, match="two files of one name"):
        require_plain_script(path)


def test_the_attacks_work_where_the_file_is_trusted():
    """The tests above would pass on attacks that are dead."""
    assert export(script(Loads()), "--trust-checkpoint", model=None).status in (0, 3)
    assert Path("canary").exists()


@pytest.mark.parametrize("name", ["save", "from_file", "to_here", "set_"])
def test_operators_that_reach_beyond_tensors_are_known(name):
    assert not computes(name, "aten")


@pytest.mark.parametrize("name", ["add", "conv2d", "einsum", "scaled_dot_product_attention", "gelu", "pad", "stft"])
def test_operators_that_compute_are_known(name):
    assert computes(name, "aten")


def test_a_program_that_reads_a_file_is_refused():
    exported = torch.export.export(network(), (torch.zeros(2, 6),))
    torch.export.save(exported, "p.pt2")
    with zipfile.ZipFile("p.pt2") as old, zipfile.ZipFile("changed.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name).replace(b"torch.ops.aten.linear.default", b"torch.ops.aten.from_file.default")
            new.writestr(name, content)
    refused(export("changed.pt2", model=None, inputs=()), "torch.ops.aten.from_file.default", "--trust")


# --------------------------------------------------------------------------- Python beside the checkpoint

BESIDE = ("safetensors", "statistics", "triton", "onnxscript", "optree", "torchvision", "tensorrt", "z3", "dill")


def canaries(folder):
    """Modules that PyTorch and its libraries import where they are there. Each leaves a file if it is run."""
    for name in BESIDE:
        source(f"import pathlib\npathlib.Path('ran-{name}').touch()\n", f"{folder}/{name}.py")


COMMAND = (str(Path(sys.executable).parent / "trt-helper"),)
MODULE = (sys.executable, "-m", "trt_helper")


@pytest.mark.parametrize(
    ("beside", "exporter", "start"),
    [(".", "dynamo", COMMAND), ("nets", "torchscript", COMMAND), (".", "torchscript", MODULE)],
    ids=["the checkpoint", "the definition", "python -m"],
)
def test_python_files_beside_a_checkpoint_or_a_definition_do_not_run(beside, exporter, start):
    saved(weights())
    Path("nets").mkdir()
    Path("nets/net.py").write_text(Path("net.py").read_text())
    canaries(beside)
    words = ["export", "c.pt", "--model", "nets/net.py:Net", *INPUT, "--exporter", exporter, "-o", "out.onnx"]
    run = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not list(Path().rglob("ran-*"))


def test_the_definition_may_import_what_lies_beside_it():
    source("WIDTH = 4\n", "nets/sizes.py")
    source(
        "from nets_of_mine import Net\n\ndef make():\n    from sizes import WIDTH\n    return Net(WIDTH)\n",
        "nets/make.py",
    )
    saved(weights())
    Path("nets/nets_of_mine.py").write_text(Path("net.py").read_text())
    assert export("c.pt", "--exporter", "torchscript", model="nets/make.py:make").status == 0


def test_a_module_of_the_working_folder_can_be_named():
    saved(weights())
    assert export("c.pt", "--exporter", "torchscript", model="net:Net").status == 0


def test_libraries_do_not_import_what_lies_beside_the_definition_unless_the_checkpoint_is_trusted():
    """They try packages that are not installed: a stranger's file of that name is none of them."""
    source("FOUND = True\n", "nets/not_installed.py")
    Path("nets/net.py").write_text("")

    def imported_by(file):
        sys.modules.pop("not_installed", None)
        FunctionType(compile("import not_installed", str(file), "exec"), {})()

    with importable("nets/net.py:Net"):
        imported_by(Path("nets/net.py").resolve())
        with pytest.raises(ImportError):
            imported_by(Path(torch.__file__).parent / "hub.py")
    with importable("nets/net.py:Net", by_libraries=True):
        imported_by(Path(torch.__file__).parent / "hub.py")
    with pytest.raises(ImportError):
        imported_by(Path("nets/net.py").resolve())
