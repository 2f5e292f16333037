"""The steps that the emulator takes are those in the text of the kernels that the installed TensorRT-RTX builds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support.builder_models import needs_rtx
from support.lowered_models import OneOperator, lowered_models
from support.model_cases import save_case
from support.operator_cases import cases

from trt_helper.builder.build import build
from trt_helper.builder.kernel_source import ROUNDED, KernelSource
from trt_helper.builder.settings import BuildSettings
from trt_helper.emulator.lowering import LOWERED, ONE_STEP, READ, Steps, lowered
from trt_helper.errors import TrtHelperError
from trt_helper.values import Plan, ReducedPrecision, Role

EXACT = {"move", "select", "max", "min", "abs", "neg", "gtr", "lt", "eql", "isinf", "floor", "ceil", "cast", "relu"}
SUMS = {"AddOp", "MaxOp", "MinOp", "MulOp", "cumsum"}

# Operator -> the calls in half that round, in the kernels of its model in `lowered_models`. Read from TensorRT-RTX
# 1.7.1. What is not here (sums, statistics) is FP32 there.
CALLS = {
    "BatchNormalization": "add mul",
    "CumSum": "",
    "Elu": "elu",
    "Gelu": "add div erf mul mul",
    "GroupNormalization": "add add mul mul",  # once with a scale of 1 and a bias of 0
    "HardSigmoid": "add mul",
    "HardSwish": "add mul mul",
    "LayerNormalization": "add mul",
    "LogSoftmax": "div exp log sub",
    "MatMul": "mul",
    "Mean": "add add mul",
    "Mish": "exp log1p mul tanh",
    "Mod": "div mul mul sub sub",  # rounded down and up, one of which is taken
    "Pow": "mul mul",
    "RMSNormalization": "mul",
    "ReduceLogSumExp": "add exp log sub",
    "ReduceSumSquare": "mul",
    "RotaryEmbedding": "add mul mul sub",
    "Selu": "add exp mul mul",
    "Sigmoid": "sigmoid",
    "Softmax": "div exp sub",
    "Softplus": "exp log1p",
    "Softsign": "add div",
    "Sum": "add add",
    "Swish": "silu",
}
# Calls whose own text has several steps.
DEFINITIONS = {
    "elu": "__hlt(x, __float2half(0.0f)) ? __hmul(alpha, __hsub(hexp(x), __float2half(1.0f))) : x",
    "sigmoid": "float __half_val = 0.5f;float t1 = __half2float(x);float t2 = t1 * __half_val;"
    "return __float2half(fmaf(__tanhf(t2), __half_val, __half_val))",
    "silu": "float __half_val = 0.5f;float t1 = __half2float(x);float t2 = t1 * __half_val;"
    "return __float2half(t1 * fmaf(__tanhf(t2), __half_val, __half_val))",
}


def engine_of(folder: Path, one: OneOperator) -> Path:
    typed, engine = folder / "typed.onnx", folder / "model.trt"
    onnx.save(one.model(TensorProto.FLOAT16), typed)
    build(typed, engine, profiles=[], settings=BuildSettings())
    return engine


def rounding_calls(engine: Path) -> list[str]:
    """The calls in half that round, in all kernels of an engine, also in those that name no ONNX layer."""
    text = engine.read_bytes().decode("latin1")
    found: Counter[str] = Counter()
    for source in {kernel.partition("\0")[0] for kernel in text.split('extern "C" __global__ void ')[1:]}:
        for (call, dtype), times in KernelSource(source).count().items():
            if dtype in ("FP16", ROUNDED) and call not in EXACT | SUMS:
                found["div" if call == "rcp" else call] += times
    return sorted(found.elements())


@needs_rtx
@pytest.mark.parametrize("operator", CALLS)
def test_the_kernels_text_has_these_steps(tmp_path, operator):
    assert rounding_calls(engine_of(tmp_path, lowered_models()[operator])) == CALLS[operator].split()


@needs_rtx
@pytest.mark.parametrize("call", DEFINITIONS)
def test_a_call_with_steps_of_its_own_is_defined_so(tmp_path, call):
    data = engine_of(tmp_path, lowered_models()["Sigmoid"]).read_bytes().decode("latin1")
    (text,) = set(re.findall(rf"__myln_{call}___myln_half___myln_half\([^)]*\) \{{(.*?)\n", data))
    assert DEFINITIONS[call] in text


WORDS = {name: name.lower() for name in ("Add", "Div", "Erf", "Exp", "Log", "Log1p", "Mul", "Sub", "Tanh")}
OTHERWISE = {  # rows that say the same as the text in other steps
    "Elu": "exp mul sub",  # as `DEFINITIONS` has it
    "GroupNormalization": "add mul",
    "Mod": "div mul sub",
}


@pytest.mark.parametrize("operator", sorted(CALLS.keys() - {"CumSum", "MatMul", "RotaryEmbedding", "Sigmoid", "Swish"}))
def test_a_row_rounds_what_the_text_rounds(operator):
    one = lowered_models()[operator]
    (node,) = ir.from_proto(one.model()).graph
    steps = lowered(node, one.opset, ReducedPrecision.FP16)
    assert isinstance(steps, Steps)
    last = [made.op_type for made in steps.nodes if steps.output in made.output]
    calls = sorted(WORDS[name] for name in (*steps.rounded, *last) if name in WORDS)
    assert calls == OTHERWISE.get(operator, CALLS[operator]).split()


def test_every_row_is_compared_with_the_text_or_computed_by_a_loop():
    """Loops: the text of recurrent layers and of short products differs with their sizes."""
    assert {name for name, row in LOWERED.items() if row.steps} <= CALLS.keys()
    assert {name for name, row in LOWERED.items() if row.loop} - CALLS.keys() == {"Conv", "GRU", "Gemm", "LSTM", "RNN"}


@needs_rtx
@pytest.mark.parametrize(
    ("operator", "calls"),
    {"LSTM": "add mul sigmoid tanh", "GRU": "add mul sigmoid sub tanh", "RNN": "add tanh", "Conv": "add mul"}.items(),
)
def test_recurrent_cells_and_short_convolutions_compute_in_half(tmp_path, operator, calls):
    assert set(rounding_calls(engine_of(tmp_path, lowered_models()[operator]))) - {"mul"} == set(calls.split()) - {
        "mul"
    }


@needs_rtx
@pytest.mark.parametrize(("terms", "columns", "in_half"), [(3, 3, True), (256, 64, False)])
def test_few_terms_are_added_up_in_half_however_many_rows(tmp_path, terms, columns, in_half):
    shapes = (np.ones((1, terms), np.float32),), (np.ones((terms, columns), np.float32),)
    model = OneOperator("MatMul", *shapes).model(TensorProto.FLOAT16)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model.graph.output[0].Clear()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", columns]))
    typed, engine = tmp_path / "typed.onnx", tmp_path / "model.trt"
    onnx.save(model, typed)
    profile = {"x0": ((1, terms), (500, terms), (1000, terms))}
    build(typed, engine, profiles=[profile], settings=BuildSettings())
    assert {"add", "mul"} <= set(rounding_calls(engine)) if in_half else not rounding_calls(engine)


# ----------------------------------------------------------------------------------------------------------- one step

NOT_AS_GIVEN = {  # onnx's own test model of these is refused, for axes that are an input, or for a scale
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMean", "ReduceProd", "ReduceSum", "Resize", "Upsample"),
    *("LpPool", "GlobalLpPool"),  # and there is none of the second
}


@needs_rtx
@pytest.mark.parametrize("operator", [n for n, says in ONE_STEP.items() if says == READ and n not in NOT_AS_GIVEN])
def test_one_step_is_one_call_that_rounds(tmp_path, operator):
    case = save_case(cases()[operator], tmp_path)
    engine = tmp_path / "model.trt"
    build(case.write(Plan()), engine, profiles=[], settings=BuildSettings())
    assert len(rounding_calls(engine)) <= 1


@needs_rtx
@pytest.mark.parametrize("operator", sorted(name for name in NOT_AS_GIVEN if name.startswith("Reduce")))
def test_a_reduction_is_one_step(tmp_path, operator):
    x = np.random.default_rng(0).random((4, 64)).astype(np.float32)
    one = OneOperator(operator, (x,), (np.array([-1]),))
    assert rounding_calls(engine_of(tmp_path, one)) == []


def test_every_operator_with_arithmetic_has_a_row(tmp_path):
    """By the roles that trt_helper gives to onnx's own test models: a new operator in onnx needs a row first."""
    without = []
    for operator, case in cases().items():
        try:
            layers = save_case(case, tmp_path).graph.layers
        except TrtHelperError:
            continue  # refused, with a reason
        computing = {layer.op for layer in layers if layer.role is Role.COMPUTE}
        without += [op for op in computing if op == operator and op not in LOWERED and op not in ONE_STEP]
    assert without == []
