"""The builder: real engines from small ONNX models, built by TensorRT-RTX on the CPU."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_helper import errors
from trt_helper.builder import (
    BuildSettings,
    EngineBuild,
    EngineLayer,
    EngineTensor,
    build,
    half_share,
    parse_layers,
    precision_of,
    prove,
    rtx,
)
from trt_helper.builder.failures import ParserComplaint, not_built, not_parsed, useful_warnings
from trt_helper.builder.layer_info import onnx_names, type_name
from trt_helper.builder.process import Limits, run
from trt_helper.builder.progress import Progress

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ROOT = Path(__file__).parent.parent

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'trt-helper[rtx]'"
)


# ---------------------------------------------------------------------------------------------- models


def node(op, inputs, outputs, name, **attributes):
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name, shape, kind=FLOAT):
    dtype = np.float32 if kind == FLOAT else np.float16
    values = np.random.default_rng(0).standard_normal(shape) * 0.05
    return numpy_helper.from_array(values.astype(dtype), name)


def model(nodes, inputs, outputs, initializers=(), domains=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def relu():
    return model([node("Relu", ["x"], ["y"], "act")], [value("x", [4, 32])], [value("y", [4, 32])])


def dynamic():
    return model([node("Relu", ["x"], ["y"], "act")], [value("x", ["b", 32])], [value("y", ["b", 32])])


def convs(*pins, channels=32, layers=("c0", "r0", "mid", "r1", "c2")):
    """A chain of Conv (c, mid) and Relu (r) in FP16, pins in FP32, a cast wherever they differ."""
    nodes, held, current, kind = [], [], "x", FLOAT
    shape = [1, channels, 8, 8]

    def cast(wanted, name):
        nodes.append(node("Cast", [current], [name], f"{name}_cast", to=wanted))
        return name, wanted

    for name in layers:
        wanted = FLOAT if name in pins else HALF
        if wanted != kind:
            current, kind = cast(wanted, f"{name}_in")
        if name.startswith("r"):
            nodes.append(node("Relu", [current], [f"{name}_out"], name))
        else:
            held.append(weights(f"{name}_w", (channels, channels, 3, 3), kind))
            inputs = [current, f"{name}_w"]
            nodes.append(node("Conv", inputs, [f"{name}_out"], name, pads=[1] * 4))
        current = f"{name}_out"
    cast(FLOAT, "y")
    return model(nodes, [value("x", shape)], [value("y", shape)], held)


def casts_of(made):
    return frozenset(one.name for one in made.graph.node if one.op_type == "Cast")


def built(folder, made, *, profiles=(), on_progress=None, **settings) -> EngineBuild:
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    out = folder / "model.trt"
    return build(path, out, profiles=profiles, settings=BuildSettings(**settings), on_progress=on_progress)


def refused(folder, made, kind, **how):
    """The error of a build that must fail, after making sure that it left nothing behind."""
    with pytest.raises(kind) as caught:
        built(folder, made, **how)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx"]
    assert type(caught.value) is kind
    assert caught.value.fix
    return caught.value


def children():
    """Process ids of this thread's living children."""
    listed = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text()
    return [int(pid) for pid in listed.split()]


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
    found = precision_of(result.layers, "act")
    assert len(found.engine_layers) == 2
    assert found.engine_layers[0].inputs[0].shape == (-1, 32)


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
    assert precision_of(result.layers, "mm").constants == ("FP32",)
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
        "import tensorrt_rtx as trt; from trt_helper.builder import BuildSettings, rtx_child as child\n"
        "log = child._Log(); builder = trt.Builder(log); kind = trt.MemoryPoolType.WORKSPACE\n"
        "chosen = BuildSettings(optimization_level=1, workspace=1 << 20, compute_capabilities=('8.6', '86'))\n"
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
        optimization_level=1,
        tf32=True,
        workspace=1 << 30,
        extra={"STRICT_NANS": "on", "avg_timing_iterations": "4", "tiling_optimization_level": "fast"},
    )
    assert chosen.sha256 != plain.sha256
    assert chosen.warnings == ()


@needs_rtx
def test_tf32_is_off_unless_asked_for(tmp_path):
    """TensorRT has it on by default. The flag cannot be read back from an engine: compare whole engines."""
    made = convs("c0", "r0", "mid", "r1", "c2")
    off, on = (built(tmp_path, made, tf32=tf32).sha256 for tf32 in (False, True))
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
        ({"optimization_level": 9}, "the optimization level is 9", "0 to 5"),
        ({"extra": {"TF32": "on"}}, "builder argument 'TF32' is not free", "use the setting tf32"),
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


# ------------------------------------------------------------------------- what can happen to a build


@needs_rtx
def test_a_time_limit_ends_the_build(tmp_path):
    error = refused(tmp_path, convs(), errors.BuildError, time_limit=0.01)
    assert "passed the time limit of 0.01 s" in error.message
    assert error.exit_status == 4
    assert not children()


@needs_rtx
def test_a_memory_limit_ends_the_build(tmp_path):
    error = refused(tmp_path, convs(), errors.BuildError, memory_limit=1 << 20)
    assert "MiB of memory, over the limit of 1 MiB" in error.message
    assert not children()


@needs_rtx
@pytest.mark.parametrize(
    ("number", "message", "fix"),
    [
        (signal.SIGKILL, "was killed from outside (SIGKILL)", "memory ran out"),
        (signal.SIGSEGV, "crashed TensorRT-RTX (SIGSEGV)", "optimization level"),
    ],
)
def test_a_builder_that_dies_is_a_build_error(tmp_path, number, message, fix):
    def kill(_phase, _fraction):
        for pid in children():
            os.kill(pid, number)

    slow = convs(channels=256, layers=tuple(f"c{index}" for index in range(16)))
    error = refused(tmp_path, slow, errors.BuildError, on_progress=kill)
    assert message in error.message
    assert re.search(r"model\.onnx \(phase '[A-Z][a-z ]+'\)", error.message)
    assert fix in error.fix
    assert error.exit_status == 4


@needs_rtx
def test_ctrl_c_ends_the_builder_and_leaves_no_file(tmp_path):
    seen = []

    def interrupt(_phase, _fraction):
        seen.extend(os.getsid(pid) for pid in children())
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, convs(), on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert len(seen) == 1
    assert seen != [os.getsid(0)]  # a session of its own: the terminal's Ctrl-C does not reach it
    assert not children()


@needs_rtx
def test_an_error_of_the_callers_own_comes_back_as_it_is(tmp_path):
    def fail(_phase, _fraction):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        built(tmp_path, convs(), on_progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


BUSY_BUILDER = """
settings = builder.BuildSettings()
builder.build(Path("model.onnx"), Path("model.trt"), profiles=[], settings=settings, on_progress=hang)
"""
SILENT_CHILD = """
sys.path.append("modules")
leftover = Path("left.partial")
leftover.touch()
process.run("silent", {}, limits=process.Limits(), on_event=lambda event: hang("", 0.0), leftover=leftover)
"""


@pytest.mark.parametrize("waits", [pytest.param(BUSY_BUILDER, marks=needs_rtx), SILENT_CHILD])
def test_a_killed_parent_takes_the_child_and_its_file_with_it(tmp_path, waits):
    (tmp_path / "model.onnx").write_bytes(convs().SerializeToString())
    (tmp_path / "modules").mkdir()
    silent = "import time\ndef run(request, send):\n    send({'event': 'on'})\n    time.sleep(60)\n"
    (tmp_path / "modules" / "silent.py").write_text(silent)
    head = (
        "import sys, time\nfrom pathlib import Path\nfrom trt_helper import builder\n"
        "from trt_helper.builder import process\n"
        "def hang(phase, fraction):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", head + waits],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"waiting\n"
    started = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(tmp_path.glob("*.partial")) or any(tmp_path.glob(".*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(started) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "modules"]


def test_a_bug_in_the_child_comes_back_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*has no attribute 'run'"):
        run("string", {}, limits=Limits(), on_event=print, leftover=tmp_path / "none")


# ------------------------------------------------------------------------------- where the engine goes


@needs_rtx
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/model.trt", "No such file or directory"),
        ("model.onnx/model.trt", "Not a directory"),
        ("/proc/model.trt", "cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_build(tmp_path, out, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(relu().SerializeToString())
    told = []
    with pytest.raises(errors.OutputError, match=message) as caught:
        build(
            path,
            tmp_path / out,
            profiles=[],
            settings=BuildSettings(),
            on_progress=lambda phase, _fraction: told.append(phase),
        )
    assert told == []
    assert caught.value.exit_status == 3


@needs_rtx
def test_an_engine_never_replaces_a_folder_or_its_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(relu().SerializeToString())
    with pytest.raises(errors.OutputError, match="is a folder"):
        build(path, tmp_path, profiles=[], settings=BuildSettings())
    with pytest.raises(errors.OutputError, match="would overwrite the model"):
        build(path, path, profiles=[], settings=BuildSettings())


@needs_rtx
def test_a_file_that_cannot_be_finished_is_an_output_error(tmp_path):
    """A limit on file size stands for the full disk: the write fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "model.onnx").write_bytes(relu().SerializeToString())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(errors.OutputError, match=r"model\.trt cannot be written: File too large"):
            built(tmp_path, relu())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_machine_without_tensorrt_rtx_is_told_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setattr(rtx, "find_spec", lambda _name: None)
    with pytest.raises(errors.MachineError) as caught:
        built(tmp_path, relu())
    assert caught.value.message == "TensorRT-RTX is not installed"
    assert caught.value.fix == "pip install 'trt-helper[rtx]'"


def test_a_tensorrt_rtx_that_cannot_be_loaded_is_a_machine_error(tmp_path, monkeypatch):
    broken = tmp_path / "packages" / "tensorrt_rtx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')\n")
    monkeypatch.syspath_prepend(str(broken.parent))
    with pytest.raises(errors.MachineError, match=r"cannot be loaded: ImportError: libcudart\.so\.13"):
        built(tmp_path, relu())
    assert not (tmp_path / "model.trt").exists()


def test_importing_the_builder_imports_nothing_heavy():
    code = "import sys, trt_helper.builder; print(*{'tensorrt_rtx', 'onnx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# ------------------------------------------------------------------------------------ proof of the pins


@needs_rtx
def test_a_lone_pinned_conv_is_demoted_and_with_its_relu_it_is_honoured(tmp_path):
    """RTX 1.7.1 rounds the lone Conv's FP32 weights to FP16, although the network says FP32."""
    alone = convs("mid", channels=64)
    lone = prove(["mid"], built(tmp_path, alone).layers, frozenset({"mid"}))[0]
    assert (lone.state, lone.types) == ("demoted", ("FP16",))
    assert lone.evidence.endswith("holds weights of FP16")
    pair = convs("mid", "r1", channels=64)
    proofs = prove(["mid", "r1"], built(tmp_path, pair).layers, frozenset({"mid"}), casts=casts_of(pair))
    assert [(proof.layer, proof.state) for proof in proofs] == [("mid", "honoured"), ("r1", "honoured")]
    assert proofs[0].engine_layers == proofs[1].engine_layers


@needs_rtx
def test_half_share_follows_the_pins(tmp_path):
    layers = ("c0", "r0", "mid", "r1", "c2")
    full = built(tmp_path, convs(*layers)).layers
    mixed = built(tmp_path, convs("mid", "r1")).layers
    none = built(tmp_path, convs()).layers
    assert half_share(full) == 0.0
    assert 0.0 < half_share(mixed) < half_share(none) < 1.0


@needs_rtx
def test_a_relu_between_two_half_convs_is_fused_and_its_company_is_named(tmp_path):
    made = convs("r0")
    proof = prove(["r0"], built(tmp_path, made).layers, frozenset(), casts=casts_of(made))[0]
    assert proof.state == "fused"
    assert "together with c0; its operations are CorrCastReluCast" in proof.evidence


def attention(*pins):
    """Softmax attention in FP16 with `qk` or `sm` in FP32."""
    nodes = [node("Cast", ["x"], ["h"], "in_cast", to=HALF)]
    kinds = {"h": HALF}

    def add(op, inputs, name, **attributes):
        wanted = FLOAT if name in pins else HALF
        read = []
        for one in inputs:
            if kinds.get(one, HALF) != wanted:
                nodes.append(node("Cast", [one], [f"{one}_{name}"], f"{one}_{name}_cast", to=wanted))
                read.append(f"{one}_{name}")
            else:
                read.append(one)
        nodes.append(node(op, read, [name], name, **attributes))
        kinds[name] = wanted

    for name in "qkv":
        add("MatMul", ["h", f"w{name}"], name)
    add("Transpose", ["k"], "kt", perm=[0, 2, 1])
    add("MatMul", ["q", "kt"], "qk")
    add("Softmax", ["qk"], "sm", axis=-1)
    add("MatMul", ["sm", "v"], "pv")
    nodes.append(node("Cast", ["pv"], ["y"], "out_cast", to=FLOAT))
    held = [weights(f"w{name}", (64, 64), HALF) for name in "qkv"]
    return model(nodes, [value("x", [4, 32, 64])], [value("y", [4, 32, 64])], held)


@needs_rtx
@pytest.mark.parametrize(
    ("pins", "states"),
    [
        (["qk"], ["demoted"]),  # the same attention kernel, hash and all, as without any pin
        (["sm"], ["fused"]),  # another attention kernel, but its inside cannot be seen
        (["qk", "sm"], ["honoured", "honoured"]),
    ],
)
def test_pins_inside_an_attention_kernel_are_told_apart(tmp_path, pins, states):
    made = attention(*pins)
    proofs = prove(pins, built(tmp_path, made).layers, frozenset({"qk"}), casts=casts_of(made))
    assert [proof.state for proof in proofs] == states


@needs_rtx
def test_a_reduction_alone_with_its_casts_is_honoured_inside_its_kernel(tmp_path):
    made = model(
        [
            node("Cast", ["x"], ["f"], "up", to=FLOAT),
            node("ReduceMean", ["f"], ["m"], "mean", axes=[-1]),
            node("Cast", ["m"], ["y"], "down", to=HALF),
        ],
        [value("x", [4, 64], HALF)],
        [value("y", [4, 1], HALF)],
    )
    layers = built(tmp_path, made).layers
    proof = prove(["mean"], layers, frozenset(), casts=casts_of(made))[0]
    assert proof.state == "honoured"
    assert "casts inside" in proof.evidence
    assert prove(["mean"], layers, frozenset())[0].state == "fused"  # casts not named: company unknown


def test_a_pin_that_no_engine_layer_names_is_gone():
    proof = prove(["x"], parse_layers(RTX_17), frozenset())[0]
    assert (proof.state, proof.engine_layers, proof.proven) == ("gone", (), False)


def test_a_set_of_pins_is_proven_by_name_and_a_list_in_its_order():
    layers = parse_layers(RTX_17)
    assert [one.layer for one in prove({"r0", "c0"}, layers, frozenset())] == ["c0", "r0"]
    assert [one.layer for one in prove(["r0", "c0"], layers, frozenset())] == ["r0", "c0"]


def test_scale_factors_do_not_make_a_half_layer_float():
    """A demoted GEMM holds its alpha and beta as FP32 constants of one element (RTX 1.7.1)."""
    layer = parse_layers(RTX_17)[0]
    assert [one.dtype for one in layer.constants] == ["FP16", "FP32"]
    assert layer.operand_types == {"FP16"}
    assert prove(["c0"], [layer], frozenset({"c0"}))[0].state == "demoted"


def test_weights_decide_over_inputs_and_over_the_bias():
    text = INSPECTOR_11.replace('"Datatype": "Half", "Role": "weights"', '"Datatype": "Float"')
    proof = prove(["conv"], parse_layers(text), frozenset({"conv"}))[0]
    assert (proof.state, proof.types) == ("honoured", ("FP16", "FP32"))


def kernel(name, kind, onnx_layers, read, written="FP16"):
    inputs, outputs = (EngineTensor("i", read, (4, 4)),), (EngineTensor("o", written, (4, 4)),)
    return EngineLayer(name, kind, tuple(onnx_layers), inputs, (), outputs)


def test_a_kernel_that_pads_the_input_does_not_speak_for_a_matmul():
    """RTX 1.7.1 names a dynamic MatMul in the kernels that pad its inputs too."""
    layers = [
        kernel("__myl_CastReplConc_myl0_1", "kgen", ["mm"], "FP16", "FP32"),
        kernel("mm_myl0_3", "gemm", ["mm"], "FP32", "FP32"),
    ]
    assert prove(["mm"], layers, frozenset({"mm"}))[0].state == "honoured"


def test_a_pin_in_two_kernels_is_as_good_as_the_worse_one():
    layers = [
        kernel("__myl_Sub_myl0_0", "kgen", ["norm"], "FP32", "FP32"),
        kernel("__myl_Mul_myl0_1", "kgen", ["norm"], "FP16"),
    ]
    assert prove(["norm"], layers, frozenset())[0].state == "demoted"
    assert prove(["norm"], layers[:1], frozenset())[0].state == "honoured"


@pytest.mark.parametrize(
    ("operations", "state"),
    [("MulExpCast", "honoured"), ("CastMulCastExpCast", "fused"), ("MulExp", "honoured")],
)
def test_a_cast_before_the_end_of_a_shared_kernel_leaves_the_type_open(operations, state):
    layers = [kernel(f"__myl_{operations}_myl0_0", "kgen", ["mul", "exp"], "FP32")]
    assert prove(["exp"], layers, frozenset())[0].state == state


def test_a_layer_without_types_proves_nothing():
    text = INSPECTOR_10.replace("Row major linear FP16 format", "N/A due to dynamic shapes")
    text = text.replace('"Type": "Half"', '"Type": "?"')
    assert [one.state for one in prove(["conv1"], parse_layers(text), frozenset({"conv1"}))] == ["unknown"]
    assert [one.state for one in prove(["relu1"], parse_layers(text), frozenset())] == ["unknown"]


# --------------------------------------------------------------------------- formats of the layer list

# Logged by the builder of TensorRT-RTX 1.7.1.116 on a machine without a GPU, shortened.
RTX_17 = (
    "Layers:\n"
    "Name: c0_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,64,16,16], "
    "Strides: [16384,1,1024,64], StrideOrder: [3,0,2,1], Datatype: Half, "
    "Format: (NHWC) Channel major format }], Constants: [ { Name: __mye1, Dimensions: [64,64,3,3], "
    "Strides: [576,1,192,64], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }, "
    "{ Name: __mye2, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, "
    "Format: (Linear) Row major linear format }], Outputs: [ { Name: r0_out, Dimensions: [1,64,16,16], "
    "Strides: [16384,1,1024,64], StrideOrder: [3,0,2,1], Datatype: Half, "
    "Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: c0]\x1f[ONNX Layer: r0]\n"
    "Name: __mye17cbr_myl0_2, LayerType: cjmp, Inputs: [ { Name: c, Dimensions: [1], Strides: [1], "
    "StrideOrder: [0], Datatype: Bool, Format: (Linear) Row major linear format }], Constants: [], "
    "Outputs: [], TacticName: , StreamId: 0, JumpTargetThen: a, JumpTargetElse: b, "
    "Metadata: [ONNX Layer: if0]\x1f[ONNX Layer: relu | then (then_branch) | if0 (If)]\n"
    "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Float, Dimensions: [1,64,16,16]\n"
)

# Logged by the builder of TensorRT-RTX 1.4.0.76 (TensorRT 10 style), shortened.
RTX_14 = (
    "Layers:\n"
    "Name: __myl_CorrCast_myl0_1, LayerType: runtime_fusion, Inputs: [ { Name: __myln_k_arg__bb1_2_myl0, "
    "Dimensions: [1,64,16,16], Format/Datatype: Half }], Outputs: [ { Name: __myln_k_arg__bb1_3_myl0, "
    "Dimensions: [1,64,16,16], Format/Datatype: Float }], TacticName: , StreamId: 0, "
    "Metadata: [ONNX Layer: c0]\x1f[ONNX Layer: r0]\x1f[ONNX Layer: cast_mid_in]\n"
    "\nBindings:\nx\ny\n"
)

# The keys are those of the engine JSON files that ship with NVIDIA's TREx
# (NVIDIA/TensorRT, tools/experimental/trt-engine-explorer/examples, commit 768d994: Inputs with
# Location and Format/Datatype, Weights and Bias with Type and Count) and, for Metadata, of TensorRT 10.
INSPECTOR_10 = json.dumps(
    {
        "Layers": [
            {
                "Name": "conv1 + relu1",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {
                        "Name": "x",
                        "Location": "Device",
                        "Dimensions": [1, 3, 32, 32],
                        "Format/Datatype": "Row major linear FP16 format",
                    }
                ],
                "Outputs": [
                    {
                        "Name": "y",
                        "Location": "Device",
                        "Dimensions": [1, 8, 32, 32],
                        "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                    }
                ],
                "ParameterType": "Convolution",
                "Weights": {"Type": "Half", "Count": 216},
                "Bias": {"Type": "Half", "Count": 8},
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16",
                "TacticValue": "0x01",
                "StreamId": 0,
                "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
            }
        ],
        "Bindings": ["x", "y"],
    }
)

# TensorRT 11 splits Format/Datatype and replaces Bindings by I/O Tensors: NVIDIA, "Migrating
# IEngineInspector Usage from TensorRT 10.x to 11.x" (docs 11.0.0). Field names inside a layer as the
# builder of RTX 1.7.1, which has the same API, logs them.
INSPECTOR_11 = json.dumps(
    {
        "Layers": [
            {
                "Name": "conv_myl0_0",
                "LayerType": "correlation",
                "Inputs": [
                    {
                        "Name": "x",
                        "Dimensions": [1, 8, 4, 4],
                        "Datatype": "Half",
                        "Format": "Row major linear format",
                    }
                ],
                "Constants": [
                    {"Name": "w", "Dimensions": [8, 8, 3, 3], "Datatype": "Half", "Role": "weights"},
                    {"Name": "b", "Dimensions": [1, 8, 1, 1], "Datatype": "Half"},
                ],
                "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Datatype": "Float"}],
                "TacticName": "t",
                "StreamId": 0,
                "Metadata": "[ONNX Layer: conv]",
            }
        ],
        "I/O Tensors": [
            {"Name": "x", "IOMode": "Input", "DataType": "Half", "Dimensions": [1, 8, 4, 4]},
        ],
    }
)


def summary(layer):
    """Name, kind and per operand group the types, for comparing whole layers."""
    groups = (layer.inputs, layer.constants, layer.outputs)
    return (layer.name, layer.kind, *([one.dtype for one in group] for group in groups))


def test_the_dump_of_rtx_17_is_read():
    conv, jump = parse_layers(RTX_17)
    assert summary(conv) == ("c0_myl0_1", "correlation", ["FP16"], ["FP16", "FP32"], ["FP16"])
    assert conv.onnx_layers == ("c0", "r0")
    assert conv.constants[0].shape == (64, 64, 3, 3)
    assert conv.tactic == "__myelin_CASK_STUB"
    assert summary(jump) == ("__mye17cbr_myl0_2", "cjmp", ["BOOL"], [], [])
    assert jump.onnx_layers == ("if0",)


def test_the_dump_of_rtx_14_is_read():
    (layer,) = parse_layers(RTX_14)
    assert summary(layer) == ("__myl_CorrCast_myl0_1", "runtime_fusion", ["FP16"], [], ["FP32"])
    assert layer.onnx_layers == ("c0", "r0", "cast_mid_in")
    assert layer.inputs[0].shape == (1, 64, 16, 16)


def test_the_json_of_tensorrt_10_is_read():
    (layer,) = parse_layers(INSPECTOR_10)
    assert summary(layer) == ("conv1 + relu1", "CaskConvolution", ["FP16"], ["FP16", "FP16"], ["FP16"])
    assert layer.onnx_layers == ("conv1", "relu1")
    assert layer.tactic == "sm80_xmma_fprop_implicit_gemm_f16f16"
    assert layer.weights[0].shape == (216,)


def test_the_json_of_tensorrt_11_is_read():
    (layer,) = parse_layers(INSPECTOR_11)
    assert summary(layer) == ("conv_myl0_0", "correlation", ["FP16"], ["FP16", "FP16"], ["FP32"])
    assert precision_of([layer], "conv").outputs == ("FP32",)


def test_json_with_raw_control_characters_names_alone_or_one_layer_is_read():
    raw = INSPECTOR_10.replace("\\u001e", "\x1e")
    assert parse_layers(raw)[0].onnx_layers == ("conv1", "relu1")
    assert [one.name for one in parse_layers('{"Layers": ["a", "b"]}')] == ["a", "b"]
    assert parse_layers(json.dumps(json.loads(INSPECTOR_11)["Layers"][0]))[0].name == "conv_myl0_0"


@pytest.mark.parametrize("text", ["", "Layer(Cask): conv1", '{"Layers": ['])
def test_text_that_is_no_layer_list_is_refused(text):
    with pytest.raises(ValueError, match=r"layer dump|EngineInspector"):
        parse_layers(text)


ODD_NAMES = ["a[0]", "a][b", "p, q", "n\nl", "{z}", "Name: k, LayerType: z", "/m/[ONNX Layer: x]", "Ünï"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_onnx_name_survives_the_metadata(name):
    assert onnx_names(f"[ONNX Layer: {name}]\x1f[ONNX Layer: b]") == (name, "b")
    assert onnx_names(f"[ONNX Layer: b][ONNX Layer: {name}]") == ("b", name)


@needs_rtx
def test_odd_onnx_names_survive_a_real_build(tmp_path):
    nodes, current = [], "x"
    for index, name in enumerate(ODD_NAMES):
        nodes.append(node("MatMul", [current, "w"], [f"t{index}"], name))
        current = f"t{index}"
    nodes.append(node("Relu", [current], ["y"], "act"))
    made = model(nodes, [value("x", [4, 64])], [value("y", [4, 64])], [weights("w", (64, 64))])
    layers = built(tmp_path, made).layers
    assert [name for one in layers for name in one.onnx_layers if name != "act"] == ODD_NAMES
    assert all(one.kind == "gemm" and one.inputs[0].shape == (4, 64) for one in layers)


def test_type_words_of_every_version_are_known():
    words = {
        "Float": "FP32",
        "Half": "FP16",
        "BFloat16": "BF16",
        "Int64": "INT64",
        "Row major linear FP32": "FP32",
        "Thirty-two wide channel vectorized row major Int8 format.": "INT8",
        "N/A due to dynamic shapes": "",
    }
    assert {word: type_name(word) for word in words} == words


# ------------------------------------------------------------------------------ TensorRT's own words


def test_a_refusal_without_a_node_or_a_reason_is_still_an_error():
    assert isinstance(not_parsed("m.onnx", "TRT", []), errors.ModelError)
    complaint = ParserComplaint("INVALID_GRAPH", "Assertion failed: no order.", "", "")
    assert not_parsed("m.onnx", "TRT", [complaint]).message == "TRT refuses m.onnx: no order"


def test_the_noise_of_a_machine_without_a_gpu_is_never_the_reason():
    noise = (
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
        "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient))"
    )
    real = "IBuilder::x: Error Code 4: API Usage Error (No luck. In validate at /_src/network.cpp:1)"
    settings = BuildSettings()
    assert not_built("m.onnx", "TRT", [real, noise], settings).message == "TRT could not build m.onnx: No luck"
    assert "it gave no reason" in not_built("m.onnx", "TRT", [noise], settings).message
    assert useful_warnings(["A.cpp:7: w", "A.cpp:9: w", "input has Int64 binding."], [noise, real]) == (
        "w",
        "No luck",
    )


def test_a_missing_driver_is_the_machines_fault():
    line = "IBuilder::b: Error Code 1: Cuda Runtime (In generateForCurrent at /_src/c.cpp:221 (cudaError 35: x))"
    error = not_built("m.onnx", "TRT", [line], BuildSettings(compute_capabilities=("current",)))
    assert isinstance(error, errors.MachineError)
    assert "name the GPU" in error.fix


def test_progress_adds_sub_phases_up_and_never_falls():
    progress = Progress()
    progress.start("all", None, 2)
    progress.start("part", "all", 4)
    progress.step("part", 0)
    assert progress.fraction == pytest.approx(1 / 8)
    progress.finish("part")
    assert progress.fraction == pytest.approx(1 / 2)
    progress.step("all", 0)
    progress.start("part", "all", 4)
    progress.step("part", 0)
    assert progress.fraction == pytest.approx(1 / 2 + 1 / 8)
    progress.step("nobody", 3)
    progress.finish("part")
    progress.finish("all")
    assert progress.fraction == 1.0
    progress.start("all", None, 2)
    progress.step("all", 0)
    assert progress.fraction == 1.0
