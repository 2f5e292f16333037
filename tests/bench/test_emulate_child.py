"""The child process that times the emulator."""

from __future__ import annotations

import numpy as np
import pytest
from support.command_line import PINS, save_overflowing

from trt_helper.bench import emulate_child
from trt_helper.emulator.kernels import Kernel

pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_trial_is_computed_whole_each_time(monkeypatch):
    """On the same feed the emulator goes on from the last trial; that would time nothing."""
    path, samples = save_overflowing()
    layers, kernels = 5, []
    compute = Kernel.run
    monkeypatch.setattr(Kernel, "run", lambda self, feeds: kernels.append(self) or compute(self, feeds))
    with np.load(samples) as archive:
        np.savez("in.npz", archive["x"])
    request = {
        "file": str(path),
        "folder": ".",
        "inputs": ["x"],
        "cures": [],
        "fp32": PINS,
        "bf16": [],
        "repeats": 7,
        "warm_up": 2,
        "streams": 1,
    }
    emulate_child.run(request, lambda _event: None)
    assert len(kernels) == layers * (1 + 2 + 7)
