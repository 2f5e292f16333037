"""The settings of a build: they reach TensorRT, and what it lacks or ignores is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.builder_models import ROOT, built, convs, needs_rtx, refused, relu

from trt_helper import errors
from trt_helper.builder.settings import BuildSettings


@needs_rtx
def test_every_setting_stands_in_the_builder_config():
    """Read from the config: on a machine without a GPU the optimization level changes no byte."""
    code = (
        "import tensorrt_rtx as trt; from trt_helper.builder import build_child\n"
        "from trt_helper.builder.settings import BuildSettings\n"
        "log = build_child.Log(); builder = trt.Builder(log); kind = trt.MemoryPoolType.WORKSPACE\n"
        "level = {'builder_optimization_level': '1'}\n"
        "chosen = BuildSettings(extra=level, workspace=1 << 20, compute_capabilities=('8.6', '86'))\n"
        "config = build_child._config(builder, chosen, log)\n"
        "print(config.builder_optimization_level, config.get_memory_pool_limit(kind), end=' ')\n"
        "print(config.num_compute_capabilities, config.get_compute_capability(0).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"1 {1 << 20} 1 SM86"


@needs_rtx
def test_settings_reach_tensorrt(tmp_path):
    plain = built(tmp_path, relu())
    chosen = built(
        tmp_path,
        relu(),
        compute_capabilities=("8.6", "sm89"),
        workspace=1 << 30,
        extra={"STRICT_NANS": "on", "TF32": "on", "avg_timing_iterations": "4", "tiling_optimization_level": "fast"},
    )
    assert chosen.sha256 != plain.sha256
    assert chosen.warnings == ()


@needs_rtx
def test_tf32_is_off_unless_requested(tmp_path):
    """TensorRT has it on by default. The flag cannot be read back from an engine: compare whole engines."""
    made = convs("c0", "r0", "mid", "r1", "c2")
    off, on = (built(tmp_path, made, extra={"TF32": word}).sha256 for word in ("off", "on"))
    assert built(tmp_path, made).sha256 == off
    code = (
        "import hashlib, sys, tensorrt_rtx as trt\n"
        "builder = trt.Builder(trt.Logger(trt.Logger.ERROR)); config = builder.create_builder_config()\n"
        "network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))\n"
        "parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))\n"
        "assert parser.parse_from_file(sys.argv[1])\n"
        "config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED\n"
        "config.clear_flag(trt.BuilderFlag.TF32)\n"
        "print(hashlib.sha256(builder.build_serialized_network(network, config)).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == off != on


@needs_rtx
def test_a_timing_cache_is_said_to_have_no_effect(tmp_path):
    result = built(tmp_path, relu(), timing_cache=tmp_path / "cache.bin")
    assert result.warnings == ("TensorRT-RTX keeps no timing cache: the one given has no effect",)


@pytest.mark.parametrize(
    ("settings", "message", "fix"),
    [
        ({"compute_capabilities": ("9.0",)}, "no compute capability '9.0'", "known are 7.5, 8.0, 8.6, 8.9"),
        ({"workspace": 0}, "the workspace is 0", "above 0"),
        ({"time_limit": -1.0}, "the time limit is -1.0", "above 0"),
        ({"time_limit": float("nan")}, "the time limit is nan", "above 0"),
        ({"memory_limit": 0}, "the memory limit is 0", "above 0"),
        ({"extra": {"flags": "1"}}, "builder argument 'flags' is not free", "name each BuilderFlag"),
    ],
)
def test_a_setting_that_no_build_can_use_is_refused_at_once(settings, message, fix):
    with pytest.raises(errors.ConfigError) as caught:
        BuildSettings(**settings)
    assert message in caught.value.message
    assert fix in caught.value.fix


@needs_rtx
@pytest.mark.parametrize(
    ("extra", "message", "fix"),
    [
        ({"STRICT_NAN": "on"}, "has no builder argument 'STRICT_NAN'", "did you mean 'STRICT_NANS'?"),
        ({"zzz": "1"}, "has no builder argument 'zzz'", "known are DLA_core, avg_timing_iterations"),
        ({"STRICT_NANS": "perhaps"}, "STRICT_NANS cannot be 'perhaps'", "on or off"),
        ({"avg_timing_iterations": "many"}, "avg_timing_iterations cannot be 'many'", "whole number"),
        ({"tiling_optimization_level": "slow"}, "cannot be 'slow'", "known are NONE, FAST, MODERATE, FULL"),
        ({"plugins_to_serialize": "a"}, "plugins_to_serialize cannot be set by a word", "leave it out"),
        ({"EXCLUDE_LEAN_RUNTIME": "1"}, "can only be set if kVERSION_COMPATIBLE is set", "leave it out"),
        ({"DLA_core": "3"}, "did not take DLA_core=3: it stays at -1", "leave it out"),
    ],
)
def test_a_builder_argument_that_tensorrt_lacks_or_ignores_is_refused(tmp_path, extra, message, fix):
    error = refused(tmp_path, relu(), errors.ConfigError, extra=extra)
    assert message in error.message
    assert fix in error.fix
