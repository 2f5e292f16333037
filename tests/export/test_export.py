"""`trt-helper export`: its options, which exporter is used, and that the ONNX model computes what the module does."""

from __future__ import annotations

import hashlib
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from support.command_line import Result, clean, in_process, ok, own_folder, run, save_input, saved, two_lines

from trt_helper.export.decomposed import decomposed
from trt_helper.onnx_model.graph import NAME_SCOPES, read_graph
from trt_helper.onnx_model.load import load

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed: pip install 'trt-helper[export]'")
if torch is not None:
    from support.export_cases import INPUT, export, network, source, weights


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)
    monkeypatch.setattr("sys.dont_write_bytecode", True)


# ------------------------------------------------------------------------------------ without PyTorch


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import trt_helper
from trt_helper.cli.main import main
main()
"""


def without_torch(*words):
    """Run `trt-helper WORDS` as where neither PyTorch nor safetensors is installed."""
    process = in_process(WITHOUT, *words)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def test_without_pytorch_export_says_how_to_install_it():
    result = without_torch("export", "c.pt", "--model", "net.py:Net")
    assert (result.status, result.out) == (3, "")
    error, fix = two_lines(result.err)
    assert "export needs PyTorch" in error
    assert fix == "pip install 'trt-helper[export]'"


def test_without_pytorch_export_says_so_too_where_the_checkpoint_is_there():
    save_input("model.pt.npz", x=np.zeros(1, np.float32)).rename("model.pt")
    result = without_torch("export", "model.pt", "--model", "net.py:Net", "--input", "x:1x3")
    assert result.status == 3
    assert "PyTorch" in two_lines(result.err)[0]
    assert "pip install 'trt-helper[export]'" in two_lines(result.err)[1]
    assert result.out == ""


def test_without_pytorch_its_help_is_there():
    result = without_torch("export", "--help")
    assert result.status == 0
    assert "--trust-checkpoint" in result.out


def test_without_pytorch_the_other_commands_work():
    assert without_torch("export", "--help").status == 0
    assert without_torch("inspect", saved(clean())).status == 0
    save_input("x.npz", x=np.ones((1, 4), np.float32))
    assert without_torch("locate", "model.onnx", "--inputs", "x.npz").status == 0


# ------------------------------------------------------------------------------------ parity


def module_file(forward, extra=""):
    """A network of one layer whose forward is `forward`, with its weights in c.pt."""
    text = "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n"
    text += "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(6, 4)\n"
    text += "".join(f"        {line}\n" for line in extra.splitlines())
    text += "\n    def forward(self, x):\n" + "".join(f"        {line}\n" for line in forward.splitlines())
    source(text)
    torch.manual_seed(1)
    layer = torch.nn.Linear(6, 4)
    torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, "c.pt")


@pytest.fixture
def plain():
    source()
    torch.save(weights(), "c.pt")


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_what_was_exported_answers_as_the_module_does():
    result = export("c.pt", "--json")
    assert result.status == 0, result.err
    found = result.json
    assert (found["verdict"], found["exporter"], found["opset"], found["why"]) == ("pass", "dynamo", 20, "")
    assert all(out["of_range"] <= 1e-4 for s in found["parity"]["samples"] for out in s["outputs"].values())
    session = onnxruntime.InferenceSession("out.onnx")
    assert [value.name for value in session.get_inputs()] == ["x"]
    x = np.random.default_rng(9).standard_normal((2, 6)).astype(np.float32)
    expected = network()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=0, atol=1e-5)


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_where_it_comes_from_is_in_the_file():
    assert export("c.pt").status == 0
    properties = {p.key: p.value for p in onnx.load("out.onnx").metadata_props}
    provenance = json.loads(properties["trt_helper.export"])
    assert provenance["checkpoint"]["sha256"] == hashlib.sha256(Path("c.pt").read_bytes()).hexdigest()
    assert provenance["torch"] == torch.__version__
    assert provenance["exporter"] == "dynamo"
    assert provenance["parity"]["of_range"] < 1e-4
    assert not [value for value in properties.values() if str(Path.cwd()) in value]
    assert str(Path.cwd()).encode() not in Path("out.onnx").read_bytes()


UNFAITHFUL = {
    "a state inside": ("self.h = self.h + x.mean()\nreturn self.layer(x) + self.h", "self.h = torch.zeros(())"),
    "random numbers": ("return self.layer(x) + torch.rand(4)", ""),
    "numpy in the middle, traced": ("return self.layer(x) + float(abs(x.numpy()).mean())", ""),
}


@needs_torch
@pytest.mark.export
@pytest.mark.parametrize("case", UNFAITHFUL)
def test_what_cannot_be_a_graph_is_not_written(case):
    """What the exporter fixes at its value of the moment shows in parity, or the exporter refuses."""
    forward, extra = UNFAITHFUL[case]
    module_file(forward, extra)
    result = export("c.pt", "--exporter", "torchscript" if "numpy" in case else "auto")
    random = case == "random numbers"  # these are an operator of ONNX, which nothing can be compared with
    assert result.status == (3 if random else 1), result
    assert ("it draws random numbers" if random else "does not give the module's answers") in result.err
    assert not Path("out.onnx").exists()
    assert not list(Path().glob(".trt-helper-*"))


@needs_torch
@pytest.mark.export
def test_a_state_is_called_a_state():
    forward, extra = UNFAITHFUL["a state inside"]
    module_file(forward, extra)
    result = export("c.pt", "--exporter", "torchscript")
    assert result.status == 1
    assert "it keeps a state or draws random numbers; nothing was written" in result.err


@needs_torch
@pytest.mark.export
def test_a_decision_by_values_is_caught_where_tracing_fixes_it():
    """dynamo refuses it, and the fallback takes one branch for both."""
    module_file("y = self.layer(x)\nif x.sum() > 0:\n    return y\nreturn -y")
    result = export("c.pt")
    assert result.status == 1, result
    assert "the exporter fixed a decision" in result.err
    assert "net.py, line 11" in result.err
    assert "over range" in result.out
    assert not Path("out.onnx").exists()
    failed = export("c.pt", "--json")
    assert failed.status == 1
    assert (failed.json["verdict"], failed.json["model"], failed.json["exporter"]) == ("fail", None, "torchscript")


@needs_torch
@pytest.mark.export
def test_writing_into_the_input_is_no_difference():
    """The module is asked with memory of its own each time."""
    module_file("x *= 2\nreturn self.layer(x)")
    assert export("c.pt", "--exporter", "torchscript").status == 0


@needs_torch
@pytest.mark.export
def test_the_fallback_is_named_with_its_reason():
    """torch.export knows no .data_ptr(); tracing does not mind."""
    module_file("assert x.data_ptr() >= 0\nreturn self.layer(x)")
    result = export("c.pt", "--json")
    assert result.status == 0, result.err
    assert result.json["exporter"] == "torchscript"
    assert "the dynamo exporter cannot export the module" in result.json["why"]
    properties = {p.key: p.value for p in onnx.load("out.onnx").metadata_props}
    assert json.loads(properties["trt_helper.export"])["why"] == result.json["why"]
    refused = export("c.pt", "--exporter", "dynamo")
    assert refused.status == 3


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_a_tolerance_that_nothing_meets_is_missed():
    result = export("c.pt", "--parity", "0", "--exporter", "torchscript")
    assert result.status == 1
    assert not Path("out.onnx").exists()


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_an_old_file_survives_a_failed_export():
    Path("out.onnx").write_bytes(b"old")
    assert export("c.pt", "--parity", "0", "--exporter", "torchscript").status == 1
    assert Path("out.onnx").read_bytes() == b"old"


# ------------------------------------------------------------------------------------ sizes


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_dynamic_sizes_are_checked_at_their_ends(exporter):
    result = export("c.pt", "--dynamic", "x:0=1..7", "--exporter", exporter, "--json")
    assert result.status == 0, result.err
    assert {sample["shapes"]["x"][0] for sample in result.json["parity"]["samples"]} == {1, 2, 7}
    (value,) = onnx.load("out.onnx").graph.input
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["x_0", 6]


@needs_torch
@pytest.mark.export
def test_a_size_that_the_module_fixes_is_no_silent_constant():
    module_file("return self.layer(x).reshape(2, 4)")
    result = export("c.pt", "--dynamic", "x:0=1..7")
    assert result.status in (1, 3), result
    assert not Path("out.onnx").exists()


@needs_torch
@pytest.mark.export
def test_weights_beyond_one_file_go_beside_it(monkeypatch):
    source()
    monkeypatch.setattr("trt_helper.export.run.IN_ONE_FILE", 16)
    torch.save(weights(width=64), "c.pt")
    result = export("c.pt", "--model-arg", "width=64", "--exporter", "torchscript")
    assert result.status == 0, result.err
    assert Path("out.onnx.data").stat().st_size >= 64 * 6 * 4
    model = onnx.load("out.onnx", load_external_data=False)
    assert {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"} == {
        "out.onnx.data"
    }
    ok("locate", "out.onnx", "--atol", "1")


# ------------------------------------------------------------------------------------ names


LAYERS = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)) + x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
            self.blocks = nn.ModuleList([Block(), Block()])
            self.heads = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 2)])})

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.heads["a"][0](x.mean((2, 3)))
"""
PATHS = {
    "stem.0/Conv": "stem.0",
    "stem.1.1/Conv": "stem.1.1",
    "blocks.0.conv/Conv": "blocks.0.conv",
    "blocks.1.conv/Conv": "blocks.1.conv",
    "blocks.0/Add": "blocks.0",
    "blocks.1/Relu": "blocks.1",
    "heads.a.0/Gemm": "heads.a.0",
}


@needs_torch
@pytest.mark.export
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_layers_are_called_after_their_modules(exporter):
    """Also after BatchNorm was folded into the convolution before it, and by both exporters alike."""
    source(LAYERS)
    spec = spec_from_file_location("net_of_the_test", Path("net.py").resolve())
    net = module_from_spec(spec)
    spec.loader.exec_module(net)
    torch.save(net.Net().state_dict(), "c.pt")
    assert export("c.pt", "--exporter", exporter, inputs=("--input", "x:1x3x8x8")).status == 0
    graph = read_graph(load(Path("out.onnx")))
    modules = {layer.name: layer.module for layer in graph.layers}
    assert {name: modules.get(name) for name in PATHS} == PATHS
    kept = {p.key for node in onnx.load("out.onnx").graph.node for p in node.metadata_props}
    assert kept == {NAME_SCOPES}
    shown = ok("inspect", "out.onnx", "--layers").out
    assert "blocks.1.conv" in shown


# ------------------------------------------------------------------------------------ norms in pieces


@needs_torch
@pytest.mark.export
def test_norms_and_gelus_are_whole_where_they_can_be():
    module_file("return self.g(self.n(self.layer(x)))", "self.n = nn.LayerNorm(4)\nself.g = nn.GELU()")
    torch.save({**torch.load("c.pt"), "n.weight": torch.ones(4), "n.bias": torch.zeros(4)}, "c.pt")
    result = export("c.pt")
    assert result.status == 0, result.err
    assert not result.warnings
    operators = [node.op_type for node in onnx.load("out.onnx").graph.node]
    assert "LayerNormalization" in operators
    assert "Gelu" in operators
    early = export("c.pt", "--opset", "18", "--exporter", "torchscript")
    assert early.status == 0, early.err
    assert any("GELUs come out in pieces" in line and "--opset 20" in line for line in early.warnings)


@needs_torch
@pytest.mark.export
def test_a_norm_in_pieces_is_said_to_be_with_its_module():
    module_file(
        "y = self.layer(x)\nreturn self.norm(y)",
        "rms = lambda _, y: y / (y * y).mean(-1, True).add(1e-6).sqrt()\n"
        "self.norm = type('Rms', (nn.Module,), {'forward': rms})()",
    )
    result = export("c.pt")
    assert result.status == 0, result.err
    assert any("norms come out in pieces" in line and ": norm;" in line for line in result.warnings)


def test_a_model_without_norms_has_none_in_pieces():
    assert decomposed([], 20) == []


@needs_torch
@pytest.mark.export
def test_an_epsilon_of_1e_12_is_kept():
    """torch.onnx's own optimiser takes it for zero: 0 / 0 at padding."""
    module_file("y = torch.relu(self.layer(x) - 100)\nreturn y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-12)")
    result = export("c.pt")
    assert result.status == 0, result.err
    (found,) = onnxruntime.InferenceSession("out.onnx").run(None, {"x": np.ones((2, 6), np.float32)})
    assert np.array_equal(found, np.zeros((2, 4), np.float32))


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_the_usage_errors_of_export():
    for words, says in (
        (("--exporter", "onnx"), "--exporter 'onnx' is no exporter"),
        (("--model-arg", "x"), "not NAME=VALUE"),
        (("--dynamic", "y:0=1..2"), "no --input 'y'"),
    ):
        result = export("c.pt", *words)
        assert result.status == 2, result
        assert says in result.err
    assert "no --input was given" in run("export", "c.pt", "--model", "net.py:Net", "-o", "out.onnx").err
    assert export("c.pt", inputs=(*INPUT, "--input", "y:1")).status == 3


@needs_torch
@pytest.mark.export
@pytest.mark.usefixtures("plain")
def test_a_checkpoint_given_to_locate_is_sent_to_export():
    result = run("locate", "c.pt")
    assert result.status == 3
    assert "trt-helper export" in two_lines(result.err)[1]
