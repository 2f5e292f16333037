"""Reading a checkpoint: its format by its content, files that a GPU saved, and networks that need no definition."""

from __future__ import annotations

import sys
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

from trt_helper.export.archive import Kind, kind_of  # noqa: E402
from trt_helper.export.checkpoint import read_checkpoint  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("export_folder")]


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
