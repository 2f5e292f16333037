"""`trt-helper doctor`: what this machine can do, and what is missing for the rest."""

from __future__ import annotations

import pytest
from support.command_line import ok

import trt_helper
from trt_helper.system import machine

pytestmark = pytest.mark.usefixtures("own_folder")


def test_doctor_tells_what_this_machine_can_do():
    found = ok("doctor", "--json").json
    assert set(found) == {"schema", "trt-helper", "platform", "abilities"}
    assert found["trt-helper"] == trt_helper.__version__
    for ability in found["abilities"]:
        assert set(ability) == {"what", "here", "with", "more"}
        assert ability["with"] if ability["here"] else ability["more"]
    assert found["abilities"][0]["what"] == "emulate FP16 (any CPU)"
    assert found["abilities"][0]["here"] is True


NO_GPU = machine.Gpu(missing="a machine with an NVIDIA GPU and its driver (libcuda.so.1 was not found here)")


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (NO_GPU, "a machine with an NVIDIA GPU"),
        (machine.Gpu("NVIDIA H100", "9.0", "13.0"), "this one, NVIDIA H100, has 9.0"),
        (machine.Gpu("NVIDIA RTX A2000", "8.6", "13.0"), ""),
    ],
)
def test_doctor_asks_for_a_gpu_that_can_run_the_engine(monkeypatch, gpu, says):
    monkeypatch.setattr(machine, "find_gpu", lambda: gpu)
    monkeypatch.setattr(machine, "installed_version", lambda *names: (names[0], "1.0"))
    found = {ability.what: ability for ability in machine.abilities()}
    run_rtx = found["run engines, TensorRT-RTX (RTX GPU)"]
    assert run_rtx.here == (not says)
    assert says in run_rtx.more
    shown = " ".join(ok("doctor").out.split())
    assert ("CUDA driver 13.0" in shown) is bool(gpu.name)
