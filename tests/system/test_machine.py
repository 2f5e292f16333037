"""What is found on this machine: its GPU, or the reason why there is none."""

from __future__ import annotations

from trt_helper.system import machine


def test_the_driver_that_is_not_there_is_named():
    gpu = machine.find_gpu()
    assert bool(gpu.name) != bool(gpu.missing)
