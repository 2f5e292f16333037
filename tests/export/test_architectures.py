"""Twelve kinds of networks, from every format of checkpoint, all the way to an engine."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.command_line import ok

from trt_helper.onnx_model.graph import read_graph
from trt_helper.onnx_model.load import load

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
safetensors = pytest.importorskip(
    "safetensors.torch", reason="safetensors is not installed: pip install 'trt-helper[export]'"
)
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'trt-helper[rtx]'")
pytestmark = pytest.mark.export

SOURCE = Path(__file__).resolve().parents[2] / "sample_models" / "architectures.py"


def sample_models():
    spec = spec_from_file_location("sample_architectures", SOURCE)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses and pickles look for their module
    spec.loader.exec_module(module)
    return module


MODELS = sample_models()


def legacy(module, path):
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)


def nested(module, path):
    torch.save({"model_state_dict": module.state_dict(), "optimizer": {"state": {}}, "epoch": 3}, path)


def prefixed(module, path):
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}, "best": np.float64(0.9)}, path
    )


def compiled(module, path):
    torch.save({"net": {f"_orig_mod.{k}": v for k, v in module.state_dict().items()}}, path)


def half(module, path):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}, path)


def tensors(module, path):
    safetensors.save_file(module.state_dict(), path)


def script(module, path, example):
    torch.jit.trace(module, example, strict=False).save(path)


def program(module, path, example):
    torch.export.save(torch.export.export(module, example), path)


def pickled(module, path):
    torch.save(module, path)


def bare(module, path):
    torch.save(module.state_dict(), path)


FORMATS = {
    "residual_cnn": (prefixed, "th"),
    "depthwise_cnn": (script, "pt"),
    "detector": (program, "pt2"),
    "unet": (nested, "ckpt"),
    "super_resolution": (tensors, "safetensors"),
    "vit": (legacy, "pth"),
    "bert": (compiled, "bin"),
    "decoder": (bare, "pt"),
    "t5": (half, "weights"),
    "recurrent": (bare, "pt"),
    "nested": (tensors, "safetensors"),
    "any_size": (pickled, "pt"),
}


def saved(name, folder):
    """A checkpoint of architecture `name` in its format, and the words that the export of it needs."""
    module, (save, suffix) = MODELS.make(name), FORMATS[name]
    path = folder / f"{name}.{suffix}"
    given = MODELS.ARCHITECTURES[name]
    words = [f"--input={text}" for text in given.inputs] + [f"--dynamic={text}" for text in given.dynamic]
    if save in (script, program):
        shapes = [[int(size) for size in text.split(":")[1].split("x")] for text in given.inputs]
        save(module, path, tuple(torch.rand(shape) for shape in shapes))
        return module, path, words if save is script else []
    save(module, path)
    if save is pickled:
        return module, path, [*words, "--trust-checkpoint"]
    return module, path, [*words, "--model", f"{SOURCE}:{given.make.__name__}"]


def test_every_architecture_has_a_format_and_every_format_is_used():
    assert set(FORMATS) == set(MODELS.ARCHITECTURES)
    assert len({save for save, _ in FORMATS.values()}) == 10


@pytest.mark.parametrize("name", FORMATS)
def test_from_checkpoint_to_engine(name, tmp_path):
    module, checkpoint, words = saved(name, tmp_path)
    model, plan, engine = tmp_path / "model.onnx", tmp_path / "plan.yaml", tmp_path / "model.trt"
    exported = ok("export", checkpoint, *words, "-o", model, "--json").json
    assert exported["verdict"] == "pass"

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(7)
    feed = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 4 for size in value.shape]
        whole = value.type == "tensor(int64)"
        feed[value.name] = generator.integers(0, 2, shape) if whole else generator.standard_normal(shape, np.float32)
    found = session.run(None, feed)
    with torch.no_grad():
        expected = flat(module(*arguments(feed)))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        # the checkpoint in half has other weights than the module: half precision, 2**-11, through some layers
        allowed = (1e-2 if FORMATS[name][0] is half else 1e-5) * max(float(theirs.abs().max()), 1e-3)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=allowed)

    modules = {path for path, _ in module.named_modules()}
    for layer in read_graph(load(model)).layers:
        assert layer.module in modules, layer
    ok("locate", model, "--atol", "0.05", "-o", plan)
    ok("convert", "--config", plan, "-o", engine)
    assert engine.read_bytes()[:4] == b"vtrt"


def arguments(feed):
    """Arrays as the module takes them: `batch.image` into a dictionary, `pair.0` into a tuple."""
    found = {}
    for name, array in feed.items():
        head, _, rest = name.partition(".")
        tensor = torch.from_numpy(array)
        if rest:
            found.setdefault(head, {})[rest] = tensor
        else:
            found[head] = tensor
    return [tuple(v.values()) if isinstance(v, dict) and "0" in v else v for v in found.values()]


def flat(result):
    """Every tensor of a nested result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    values = result.values() if isinstance(result, dict) else result
    return [tensor for value in values if value is not None for tensor in flat(value)]
