"""How weights are found in a checkpoint, however it was saved, and that exactly those are used."""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'trt-helper[export]'")

from safetensors.torch import save_file  # noqa: E402
from support.export_cases import export, network, weights  # noqa: E402
from torch import serialization  # noqa: E402

from trt_helper.errors import ModelError  # noqa: E402
from trt_helper.export.archive import Kind, kind_of  # noqa: E402
from trt_helper.export.checkpoint import read_checkpoint  # noqa: E402
from trt_helper.export.weights import load_weights  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("export_folder")]


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def other(state):
    """Weights of the same shapes that must not be taken."""
    return {name: torch.full_like(value, 7) for name, value in state.items()}


CONTENTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 92.6},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(3)}}, "param_groups": []}},
    "net_state_dict": lambda s: {"net_state_dict": s, "epoch": 12},
    "model_state_dict": lambda s: {"model_state_dict": s, "lr": np.float64(0.1), "args": argparse.Namespace(x=1)},
    "two deep": lambda s: {"checkpoint": {"generator": s}, "history": [1, 2]},
    "beside ema": lambda s: {"ema": other(s), "state_dict": s},
    "an unknown name": lambda s: {"my_weights": s},
    "path and types": lambda s: {"state_dict": s, "from": Path("/somewhere"), "type": np.dtype("float32")},
    "module.": lambda s: under("module.", s),
    "model.": lambda s: under("model.", s),
    "module.model.": lambda s: {"state_dict": under("module.model.", s)},
    "_orig_mod.": lambda s: under("_orig_mod.", s),
    "module._orig_mod.": lambda s: under("module._orig_mod.", s),
    "inner wrapper": lambda s: {n.replace("body.", "body.module."): v for n, v in s.items()},
    "lightning": lambda s: {
        "pytorch-lightning_version": "2",
        "state_dict": {**under("net.", s), "criterion.weight": torch.ones(3)},
    },
    "ordered": OrderedDict,
    "parameters": lambda s: {n: torch.nn.Parameter(v) if v.is_floating_point() else v for n, v in s.items()},
    "no counters": lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("case", CONTENTS)
def test_the_weights_are_found(case):
    torch.save(CONTENTS[case](weights()), "c.pt")
    module = network()
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    for parameter in (*module.parameters(), *module.buffers()):
        parameter.data.zero_()
    load_weights(module, read_checkpoint(Path("c.pt")).content, Path("c.pt"))
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name]), name


def test_a_module_that_wraps_takes_the_weights_of_what_it_wraps():
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

    wrapper = Wrapper()
    state = other(weights())
    load_weights(wrapper, state, Path("c.pt"))
    assert torch.equal(wrapper.net.head.weight, torch.full((3, 4), 7.0))


def test_of_two_that_fit_the_choice_is_said_and_can_be_made():
    content = {"ema": other(weights()), "state_dict": weights()}
    module = network()
    fit, notes = load_weights(module, content, Path("c.pt"))
    assert fit.entry == "state_dict"
    assert notes == ["weights from 'state_dict'; ema would fit as well: choose with --key"]
    fit, notes = load_weights(module, content, Path("c.pt"), key="ema")
    assert (fit.entry, notes) == ("ema", [])
    assert torch.equal(module.head.weight, torch.full((3, 4), 7.0))


def test_tensors_of_another_module_are_said_aloud():
    _, notes = load_weights(network(), {**under("net.", weights()), "loss.w": torch.ones(1)}, Path("c.pt"))
    assert notes == ["1 tensors outside 'net.' belong to another module: loss.w"]


def test_a_prefix_that_hides_a_part_is_no_match():
    """`body.0.weight` is not found under a prefix that only some keys have."""
    state = {name: value for name, value in weights().items() if not name.startswith("head")}
    with pytest.raises(ModelError, match=r"lacks 2 of the module's 9 tensors: head\.weight, head\.bias"):
        load_weights(network(), under("module.", state), Path("c.pt"))


def test_weights_saved_in_half_are_used_in_single():
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights().items()}
    module = network()
    load_weights(module, half, Path("c.pt"))
    assert module.head.weight.dtype is torch.float32
    assert torch.equal(module.head.weight, weights()["head.weight"].half().float())


def test_what_a_file_is_is_read_from_it_and_not_from_its_name():
    made = {
        "zip.anything": (Kind.WEIGHTS, lambda path: torch.save(weights(), path)),
        "legacy.th": (
            Kind.WEIGHTS,
            lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
        ),
        "script.bin": (Kind.SCRIPT, lambda path: torch.jit.trace(network(), torch.zeros(2, 6)).save(path)),
        "tensors.pt": (Kind.SAFETENSORS, lambda path: save_file(weights(), path)),
    }
    for name, (kind, save) in made.items():
        save(name)
        assert kind_of(Path(name)) is kind, name


def test_a_file_saved_on_a_gpu_is_read_on_the_cpu():
    """What CUDA leaves in a file is the location of each storage: put there by hand, as a GPU would."""
    serialization.register_package(1, lambda _storage: "cuda:0", lambda _storage, _location: None)
    try:
        torch.save(weights(), "gpu.pt")
    finally:
        serialization._package_registry[:] = [entry for entry in serialization._package_registry if entry[0] != 1]
    assert b"cuda:0" in Path("gpu.pt").read_bytes()
    content = read_checkpoint(Path("gpu.pt")).content
    assert {value.device.type for value in content.values()} == {"cpu"}
    assert torch.equal(content["head.weight"], weights()["head.weight"])


def importable(monkeypatch):
    """The network, its class where a pickle looks for it."""
    made = network()
    module = ModuleType("net_of_the_test")
    module.Net = type(made)
    monkeypatch.setitem(sys.modules, "net_of_the_test", module)
    return made


def answer(path="out.onnx"):
    x = np.random.default_rng(5).standard_normal((2, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        return found, network()(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("how", ["script", "trace", "program", "module", "module in a dictionary"])
def test_a_whole_network_needs_no_definition(how, monkeypatch):
    words, inputs = [], ("--input", "x:2x6")
    if how == "script":
        torch.jit.script(network()).save("c.pt")
    elif how == "trace":
        torch.jit.trace(network(), torch.zeros(2, 6)).save("c.pt")
    elif how == "program":
        torch.export.save(torch.export.export(network(), (torch.zeros(2, 6),)), "c.pt2")
        inputs = ()
    else:
        made = importable(monkeypatch)
        torch.save(made if how == "module" else {"model": made, "ema": None}, "c.pt")
        words = ["--trust-checkpoint"]
    file = "c.pt2" if how == "program" else "c.pt"
    result = export(file, *words, model=None, inputs=inputs)
    assert result.status == 0, result.err
    found, expected = answer()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_weights_alone_need_a_definition():
    torch.save(weights(), "c.pt")
    result = export("c.pt", model=None)
    assert result.status == 2
    assert "holds weights and no network" in result.err


def test_a_pickled_module_gives_its_weights_to_a_definition(monkeypatch):
    torch.save(importable(monkeypatch), "c.pt")
    refused = export("c.pt")
    assert refused.status == 3
    assert "net_of_the_test.Net" in refused.err
    assert "any code" in refused.err
    assert export("c.pt", "--trust-checkpoint").status == 0
    found, expected = answer()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
