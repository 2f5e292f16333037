"""Building an engine: real ones by TensorRT-RTX on the CPU, what can happen meanwhile, and where the file goes."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto
from support.builder_models import ROOT, built, children, convs, dynamic, needs_rtx, refused, relu, weights
from support.onnx_parts import model, node, value
from support.rewritable_models import range_model

from trt_helper import errors
from trt_helper.builder.build import build
from trt_helper.builder.settings import BuildSettings
from trt_helper.onnx_model.typed import render, write

# ------------------------------------------------------------------------------------------------------- what comes out


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


def test_an_engine_is_built_with_bf16(tmp_path):
    graph = range_model(tmp_path)
    path = tmp_path / "typed.onnx"
    write(render(graph, graph.plan([], ["up", "abs", "down"])), path)
    built = build(path, tmp_path / "range.trt", profiles=[], settings=BuildSettings())
    assert built.bytes > 0


# ---------------------------------------------------------------------------------------------- models that are refused


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


# ------------------------------------------------------------------------------------------------------- shape profiles


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


# ------------------------------------------------------------------------------------------- what can happen to a build


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


# ------------------------------------------------------------------------------------------------ where the engine goes


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
    reported = []
    with pytest.raises(errors.OutputError, match=message) as caught:
        build(
            path,
            tmp_path / out,
            profiles=[],
            settings=BuildSettings(),
            on_progress=lambda phase, _fraction: reported.append(phase),
        )
    assert reported == []
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


# ---------------------------------------------------------------------------------------- machines without TensorRT-RTX


def test_a_machine_without_tensorrt_rtx_is_told_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setattr("trt_helper.builder.build.find_spec", lambda _name: None)
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
