"""What the export tests share: a tiny network in a file of its own, its weights, and the command on it."""

from __future__ import annotations

import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

from support.command_line import run, two_lines

NETWORK = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=4, classes=3):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU())
            self.norm = nn.BatchNorm1d(width)
            self.head = nn.Linear(width, classes)

        def forward(self, x):
            return self.head(self.norm(self.body(x)))
"""
INPUT = ("--input", "x:2x6")


def source(text=NETWORK, name="net.py"):
    """Write Python into the working folder; returns the path."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def network(**arguments):
    """The network of net.py in the working folder, seeded, its norm with statistics."""
    spec = spec_from_file_location("net_of_the_test", source().resolve())
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    made = module.Net(**arguments).eval()
    torch.nn.init.uniform_(made.norm.running_mean, -1, 1)
    torch.nn.init.uniform_(made.norm.running_var, 0.5, 2)
    return made


def weights(**arguments):
    return network(**arguments).state_dict()


def export(checkpoint, *words, model="net.py:Net", inputs=INPUT):
    """Run `trt-helper export CHECKPOINT --model MODEL --input ... WORDS -o out.onnx`."""
    named = ("--model", model) if model else ()
    return run("export", checkpoint, *named, *inputs, *words, "-o", "out.onnx")


def refused(result, says, fix="", status=3):
    assert result.status == status, result
    assert result.out == ""
    error, remedy = two_lines(result.err)
    assert says in error
    assert fix in remedy
    assert not Path("out.onnx").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".trt-helper-")]


def saved(content, name="c.pt", **options):
    torch.save(content, name, **options)
    return name
