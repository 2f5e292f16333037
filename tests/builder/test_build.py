"""Real engines from small ONNX models, built by TensorRT-RTX on the CPU; models and settings that it refuses."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.builder_models import (
    HALF,
    ROOT,
    built,
    convs,
    dynamic,
    model,
    needs_rtx,
    node,
    refused,
    relu,
    value,
    weights,
)

from trt_helper import errors
from trt_helper.builder.build import build
from trt_helper.builder.settings import BuildSettings

# ------------------------------------------------------------------------------------- what comes out


@needs_rtx
def test_a_build_gives_the_engine_and_what_is_known_about_it(tmp_path):
    result = built(tmp_path, convs())
    engine = result.path.read_bytes()
    assert result.path == tmp_path / "model.trt"
    assert (result.bytes, result.sha256) == (len(engine), hashlib.sha256(engine).hexdigest())
    assert result.builder.startswith("TensorRT-RTX ")
    assert 0 < result.seconds < 60
    assert {name for layer in result.layers for name in layer.onnx_layers} >= {"c0", "r0", "mid", "r1", "c2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.trt"]


@needs_rtx
def test_the_same_model_gives_the_same_bytes(tmp_path):
    assert built(tmp_path, convs("mid")).sha256 == built(tmp_path, convs("mid")).sha256


@needs_rtx
def test_an_engine_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    assert built(tmp_path, relu()).path.stat().st_mode == (tmp_path / "any").stat().st_mode


@needs_rtx
def test_two_profiles_of_a_dynamic_model_build_every_layer_twice(tmp_path):
    small = {"x": ((1, 32), (2, 32), (4, 32))}
    large = {"x": ((8, 32), (8, 32), (16, 32))}
    result = built(tmp_path, dynamic(), profiles=[small, large])
    found = [one for one in result.layers if "act" in one.onnx_layers]
    assert len(found) == 2
    assert found[0].inputs[0].shape == (-1, 32)


@needs_rtx
def test_an_input_whose_values_are_a_shape_takes_values_as_its_profile(tmp_path):
    inputs = [value("x", [4, 32]), value("s", [2], TensorProto.INT64)]
    made = model([node("Reshape", ["x", "s"], ["y"], "re")], inputs, [value("y", ["a", "b"])])
    error = refused(tmp_path, made, errors.InputError)
    assert error.message == "the values of input 's' set shapes, and it has no shape profile"
    assert built(tmp_path, made, profiles=[{"s": ((4, 32), (4, 32), (4, 32))}]).bytes > 0


@needs_rtx
def test_external_weights_are_found_beside_the_model_and_missed_by_name(tmp_path):
    made = model(
        [node("MatMul", ["x", "w"], ["y"], "mm")],
        [value("x", [4, 32])],
        [value("y", [4, 32])],
        [weights("w", (32, 32))],
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    out = tmp_path / "model.trt"
    result = build(path, out, profiles=[], settings=BuildSettings())
    assert [tensor.dtype for one in result.layers for tensor in one.weights] == ["FP32"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(errors.ModelError, match=r"weights that cannot be read: 'w'"):
        build(path, out, profiles=[], settings=BuildSettings())
    assert out.stat().st_size == result.bytes  # a failed build leaves the engine that was there


@needs_rtx
def test_progress_names_phases_and_never_falls(tmp_path):
    told = []
    built(tmp_path, convs(), on_progress=lambda phase, fraction: told.append((phase, fraction)))
    fractions = [fraction for _, fraction in told]
    assert told[0] == ("Reading the model", 0.0)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "Optimizing graph" in {phase for phase, _ in told}


@needs_rtx
def test_every_setting_stands_in_the_builder_config():
    """Asked of the config: on a machine without a GPU the optimization level changes no byte."""
    code = (
        "import tensorrt_rtx as trt; from trt_helper.builder import build_child as child\n"
        "from trt_helper.builder.settings import BuildSettings\n"
        "log = child._Log(); builder = trt.Builder(log); kind = trt.MemoryPoolType.WORKSPACE\n"
        "level = {'builder_optimization_level': '1'}\n"
        "chosen = BuildSettings(extra=level, workspace=1 << 20, compute_capabilities=('8.6', '86'))\n"
        "config = child._config(builder, chosen, log)\n"
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
def test_tf32_is_off_unless_asked_for(tmp_path):
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


@needs_rtx
def test_warnings_keep_what_is_useful_once(tmp_path):
    made = model(
        [
            node("Relu", ["x"], ["a"], "act"),
            node("ReduceMean", ["a"], ["m"], "mean", axes=[-1]),
            node("Sub", ["a", "m"], ["d"], "sub"),
            node("Pow", ["d", "two"], ["p"], "pow"),
            node("ReduceMean", ["p"], ["v"], "var", axes=[-1]),
            node("Add", ["v", "eps"], ["ve"], "add"),
            node("Sqrt", ["ve"], ["s"], "sqrt"),
            node("Div", ["d", "s"], ["y"], "div"),
        ],
        [value("x", [4, 32, 64], HALF)],
        [value("y", [4, 32, 64], HALF)],
        [
            numpy_helper.from_array(np.array(2, np.float16), "two"),
            numpy_helper.from_array(np.array(1e-3, np.float16), "eps"),
        ],
    )
    warnings = built(tmp_path, made).warnings
    assert warnings[0] == "Detected layernorm nodes in FP16."
    assert len(warnings) == len(set(warnings))


# ---------------------------------------------------------------------------------- models it refuses


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"garbage" * 9, b"<html>not found</html>"])
def test_a_file_that_is_no_onnx_model_is_called_that(tmp_path, content):
    error = refused(tmp_path, content, errors.ModelError)
    assert error.message == "model.onnx holds no ONNX graph with layers and outputs"
    assert error.exit_status == 3


@needs_rtx
def test_a_model_without_outputs_is_refused(tmp_path):
    made = model([node("Relu", ["x"], ["a"], "act")], [value("x", [4, 32])], [])
    assert "outputs" in refused(tmp_path, made, errors.ModelError).message


@needs_rtx
def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.ModelError, match=r"there is no model .*none\.onnx"):
        build(tmp_path / "none.onnx", tmp_path / "m.trt", profiles=[], settings=BuildSettings())


@needs_rtx
def test_an_unsupported_operator_is_named_where_tensorrt_says_only_false(tmp_path):
    made = model([node("Unique", ["x"], ["y"], "uq")], [value("x", [4, 32])], [value("y", ["n"])])
    error = refused(tmp_path, made, errors.BuildError)
    assert "does not support Unique: layer 'uq' (Unique) of model.onnx" in error.message
    assert error.fix == "replace Unique by other ONNX operators when exporting"
    assert error.exit_status == 4


@needs_rtx
def test_a_missing_plugin_is_named(tmp_path):
    made = model(
        [node("Foo", ["x"], ["y"], "foo", domain="my")],
        [value("x", [4, 32])],
        [value("y", [4, 32])],
        domains=("my",),
    )
    error = refused(tmp_path, made, errors.BuildError)
    assert "has no operator or plugin 'Foo': layer 'foo' (Foo)" in error.message


@needs_rtx
def test_mixed_types_without_a_cast_give_tensorrts_sentence_and_no_noise(tmp_path):
    made = model(
        [node("Add", ["x", "h"], ["y"], "addmix")],
        [value("x", [4, 32])],
        [value("y", [4, 32])],
        [weights("h", (4, 32), HALF)],
    )
    error = refused(tmp_path, made, errors.BuildError)
    assert error.message.endswith(
        "refuses layer 'addmix' (Add) of model.onnx: addmix: ElementWiseOperation SUM must have same input "
        "types. But they are of types Float and Half"
    )
    assert "put a Cast before it" in error.fix


@needs_rtx
def test_an_input_type_that_tensorrt_lacks_is_refused_in_a_sentence(tmp_path):
    text = TensorProto.STRING
    made = model([node("Identity", ["x"], ["y"], "id")], [value("x", [4], text)], [value("y", [4], text)])
    error = refused(tmp_path, made, errors.BuildError)
    assert error.message.endswith("refuses model.onnx: Failed to convert ONNX date type to TensorRT data type")


# ------------------------------------------------------------------------------------ shape profiles


def same(*shape):
    return (shape, shape, shape)


@needs_rtx
@pytest.mark.parametrize(
    ("profiles", "message", "fix"),
    [
        ([], "input 'x' is dynamic (?x32) and it has no shape profile", "--shapes x:1x32,4x32,8x32"),
        ([{}], "input 'x' is dynamic (?x32) and the shape profile lacks it", "--shapes x:1x32,4x32,8x32"),
        ([{"xx": same(1, 32)}], "names 'xx', which is no input of the model", "did you mean 'x'?"),
        ([{"image": same(1, 32)}], "names 'image', which is no input", "the inputs are x"),
        ([{"x": same(1, 32, 1)}], "gives 'x' 3 dimensions (1x32x1), the model has 2", "'x' is ?x32"),
        ([{"x": same(1, 16)}], "gives 'x' the shape 1x16", "only '?' is free"),
        ([{"x": same(-1, 32)}], "gives 'x' the shape ?x32", "only '?' is free"),
        (
            [{"x": ((4, 32), (2, 32), (1, 32))}],
            "the shape profile of 'x' is not min <= opt <= max: 4x32, 2x32, 1x32",
            "order the three shapes",
        ),
        (
            [{"x": ((1, 32), (8, 32), (4, 32))}],
            "the shape profile of 'x' is not min <= opt <= max: 1x32, 8x32, 4x32",
            "order the three shapes",
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_before_the_build(tmp_path, profiles, message, fix):
    error = refused(tmp_path, dynamic(), errors.InputError, profiles=profiles)
    assert message in error.message
    assert fix in error.fix
    assert error.exit_status == 3


# ------------------------------------------------------------------------------------------ settings


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


@needs_rtx
def test_a_small_workspace_is_blamed_by_its_size(tmp_path):
    error = refused(tmp_path, convs(channels=256, layers=("c0",)), errors.BuildError, workspace=1 << 20)
    assert error.message == "a workspace of 1 MiB is too small to build model.onnx"
    assert error.exit_status == 4


@needs_rtx
def test_a_failed_build_repeats_tensorrts_last_words_without_places(tmp_path):
    extra = {"VERSION_COMPATIBLE": "on"}
    error = refused(tmp_path, relu(), errors.BuildError, extra=extra)
    assert "could not build model.onnx: Unable to load library: libnvinfer_lean.so" in error.message
    assert "/_src/" not in error.message
    assert error.fix == "leave VERSION_COMPATIBLE out: its library is not part of the wheel"
