"""TensorRT's refusals, failures and warnings, each turned into a sentence that says what to do."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper
from support.builder_models import HALF, built, convs, needs_rtx, refused, relu, weights
from support.onnx_parts import model, node, value

from trt_helper import errors
from trt_helper.builder.failures import ParserComplaint, not_built, not_parsed, useful_warnings
from trt_helper.builder.settings import BuildSettings

# ----------------------------------------------------------------------------------------- models that TensorRT refuses


@needs_rtx
def test_an_unsupported_operator_is_named_where_tensorrt_says_only_false(tmp_path):
    made = model([node("Unique", ["x"], ["y"], "uq")], [value("x", [4, 32])], [value("y", ["n"])])
    error = refused(tmp_path, made, errors.BuildError)
    assert "does not support layer 'uq' (Unique) of model.onnx" in error.message
    assert error.fix == "export the model without this Unique"
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


def test_a_refusal_without_a_node_or_a_reason_is_still_an_error():
    assert isinstance(not_parsed("m.onnx", "TRT", []), errors.ModelError)
    complaint = ParserComplaint("INVALID_GRAPH", "Assertion failed: no order.", "", "")
    assert not_parsed("m.onnx", "TRT", [complaint]).message == "TRT refuses m.onnx: no order"


# ----------------------------------------------------------------------------------------------------- builds that fail


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


# ------------------------------------------------------------------------------------------------------------- warnings


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
