"""The weights of a checkpoint, loaded into a module: found however they were saved, and refused where they differ."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'trt-helper[export]'")

from support.export_cases import export, network, refused, saved, weights  # noqa: E402

from trt_helper.errors import ModelError  # noqa: E402
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


# ----------------------------------------------------------------------------------------- names and shapes that differ


def test_missing_and_unexpected_keys_are_listed_with_what_to_try():
    state = weights()
    state["classifier.weight"] = state.pop("head.weight")
    refused(
        export(saved(state)),
        "lacks 1 of the module's 9 tensors: head.weight and has 1 that the module lacks: classifier.weight",
        "--allow-missing",
    )


def test_a_key_that_is_nearly_right_is_asked_about():
    state = weights()
    state["heads.weight"] = state.pop("head.weight")
    refused(export(saved(state)), "head.weight", "is 'head.weight' called 'heads.weight' in the file?")


def test_a_long_list_of_keys_is_short():
    refused(export(saved({f"layers.{i}.w": torch.zeros(1) for i in range(400)})), "and 395 more", "nothing fits")


def test_what_is_missing_is_said_aloud_where_it_is_allowed():
    state = weights()
    del state["head.bias"]
    state["surplus"] = torch.zeros(2)
    result = export(saved(state), "--allow-missing", "--exporter", "torchscript")
    assert result.status == 0, result.err
    assert any("1 of the module's tensors are not in c.pt and stay random: head.bias" in w for w in result.warnings)
    assert any("were left out: surplus" in w for w in result.warnings)


def test_other_shapes_are_listed_with_the_argument_to_give():
    refused(
        export(saved(weights(classes=7))),
        "2 tensors of another shape: head.weight 7x4 in the file, 3x4 in the module",
        "--model-arg",
    )
    refused(export("c.pt", "--allow-missing"), "of another shape")
    assert export("c.pt", "--model-arg", "classes=7", "--exporter", "torchscript").status == 0


def test_a_key_without_weights_is_a_usage_error_that_names_the_others():
    saved({"net_a": weights(), "step": 4})
    refused(export("c.pt", "--key", "ema"), "--key 'ema'", "it has weights in net_a", status=2)


def test_a_file_of_numbers_holds_no_state_dict():
    refused(export(saved({"epoch": 3, "loss": [1.0]})), "holds no state dict, but a dictionary of epoch, loss")
