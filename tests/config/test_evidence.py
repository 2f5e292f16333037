"""Reading a config's evidence: a user may have edited it, and what makes no sense is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builder_models import reshaped

from trt_helper.config.evidence import given_shapes, recorded_additions, recorded_guards, recorded_inputs, recorded_pins
from trt_helper.config.plan_file import Config


def test_what_is_recorded_is_read(tmp_path):
    evidence = {
        "given-shapes": ["x:1x3"],
        "inputs": ["samples"],
        "layers": {"conv": {}},
        "engine": {"guards": ["mul", "gone"], "added": {"softmax": "conv"}},
    }
    config = Config(path=Path("configs/c.yaml"), evidence=evidence)
    assert given_shapes(config) == ("x:1x3",)
    assert recorded_inputs(config) == (Path("configs/samples"),)
    assert recorded_pins(config) == ("conv",)
    assert recorded_guards(config, reshaped(tmp_path).candidates) == ("mul",)  # the model has no layer named "gone"
    assert recorded_additions(config) == {"softmax"}


@pytest.mark.parametrize("odd", [None, 5, "text", [[1], {}], {"a": 1}, {"guards": 5, "added": ["a"]}])
def test_what_makes_no_sense_says_nothing(odd, tmp_path):
    config = Config(evidence=dict.fromkeys(("given-shapes", "inputs", "layers", "engine"), odd))
    assert isinstance(given_shapes(config), tuple)
    assert isinstance(recorded_inputs(config), tuple)
    assert isinstance(recorded_pins(config), tuple)
    assert recorded_guards(config, reshaped(tmp_path).candidates) == ()
    assert recorded_additions(config) == frozenset()
