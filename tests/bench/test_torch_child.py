"""`bench --checkpoint`: the PyTorch module that the model was exported from is timed in a child process."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from support.command_line import clean, ok, refused, run, saved, two_lines
from support.onnx_parts import constant, model, node, value

HERE = find_spec("torch") is not None


pytestmark = pytest.mark.usefixtures("own_folder")


NET = """
from pathlib import Path
import torch

class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(4, width)
    def forward(self, x):
        with Path("seen").open("a") as file:
            print(tuple(x.shape), torch.is_grad_enabled(), self.training, file=file)
        return self.layer(x)

class Other(Net):
    def forward(self, x):
        return super().forward(x) + 1

class Broken(Net):
    def forward(self, x):
        return self.layer(x[:, :3])
"""


needs_torch = pytest.mark.skipif(not HERE, reason="PyTorch is not installed: pip install 'trt-helper[export]'")


def checkpoint():
    """A module, its weights and the model that they make."""
    import torch  # noqa: PLC0415 - optional

    Path("net.py").write_text(NET)
    weight, bias = np.arange(16, dtype=np.float32).reshape(4, 4), np.ones(4, np.float32)
    torch.save({"layer.weight": torch.from_numpy(weight), "layer.bias": torch.from_numpy(bias)}, "c.pt")
    saved(
        model(
            [node("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)],
            [value("x", ["n", 4])],
            [value("y", ["n", 4])],
            [constant("w", weight), constant("b", bias)],
        )
    )
    return ["bench", "model.onnx", "--checkpoint", "c.pt", "--repeats", "5", "--warm-up", "2"]


@needs_torch
@pytest.mark.export
def test_pytorch_is_timed_where_a_checkpoint_is_given():
    result = ok(*checkpoint(), "--model", "net.py:Net", "--batch", "2,3", "--json")
    assert result.err == ""
    rows = [one for one in result.json["measured"] if one["runner"] == "pytorch"]
    assert [(one["batch"], one["precision"], one["runs"]) for one in rows] == [(2, "fp32", 5), (3, "fp32", 5)]
    assert all(one["what"].startswith("PyTorch 2.") for one in rows)
    seen = Path("seen").read_text().splitlines()
    assert seen == [f"({size}, 4) False False" for size in (2, 3) for _ in range(1 + 2 + 5)]
    assert "PyTorch, FP32" not in {one["what"] for one in result.json["not_run"]}


@needs_torch
@pytest.mark.export
def test_another_network_than_the_model_is_warned_of():
    result = ok(*checkpoint(), "--model", "net.py:Other")
    (warning,) = result.warnings
    assert "CPU, FP32 does not give the model's answers" in warning
    shape = ok(*checkpoint(), "--model", "net.py:Net", "--model-arg", "width=7", status=3)
    assert "7" in two_lines(shape.err)[0]


@needs_torch
@pytest.mark.export
@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        ([], "c.pt holds weights and no network", 2),
        (["--model", "net.py:Nett"], "net.py has no 'Nett'", 3),
        (["--model", "net.py:Broken"], "the module raises RuntimeError", 3),
        (["--model", "net.py:Net", "--model-arg", "width"], "--model-arg 'width' is not NAME=VALUE", 2),
    ],
)
def test_a_module_that_cannot_be_run_is_an_error_in_two_lines(words, says, status):
    result = run(*checkpoint(), *words)
    assert (result.status, result.out) == (status, "")
    assert says in two_lines(result.err)[0]


@pytest.mark.skipif(HERE, reason="PyTorch is installed")
def test_without_pytorch_a_checkpoint_says_what_to_install():
    saved(clean())
    Path("c.pt").touch()
    refused("bench", "model.onnx", "--checkpoint", "c.pt", says="needs PyTorch", fix="pip install 'trt-helper[export]'")
