"""Models that trt-helper must say no to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from support.models import f32, parsed

REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {}


def refused(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    REFUSED[build.__name__] = build
    return build


@refused
def quantised():
    return parsed(
        """g (float[2,3] x) => (float[2,3] y) {
          [quantise] q = QuantizeLinear(x, s, z)
          [back] y = DequantizeLinear(q, s, z)
        }""",
        s=np.array(0.1, np.float32),
        z=np.array(3, np.uint8),
    )


@refused
def custom_domain():
    model = parsed("g (float[2,3] x) => (float[2,3] y) { [own] y = acme.Swish(x) }")
    model.opset_import.append(helper.make_opsetid("acme", 1))
    return model


@refused
def cycle():
    return parsed("g (float[2] x) => (float[2] y) { [a] p = Add(x, q) [b] q = Exp(p) [c] y = Neg(q) }")


@refused
def dangling_input():
    return parsed("g (float[2] x) => (float[2] y) { [sum] y = Add(x, ghost) }")


@refused
def dangling_output():
    model = parsed("g (float[2] x) => (float[2] y) { [sum] y = Add(x, x) }")
    model.graph.output.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [2]))
    return model


@refused
def no_outputs():
    model = parsed("g (float[2] x) => (float[2] y) { [sum] y = Add(x, x) }")
    del model.graph.output[:]
    return model


@refused
def unknown_operator():
    return parsed("g (float[2] x) => (float[2] y) { [odd] y = Frobnicate(x) }")


@refused
def all_constant():
    return parsed("g (float[2] x) => (float[2] y) { [sum] y = Add(w, w) }", w=f32(1, 2))


@refused
def unfoldable():
    """onnxscript's rule for this operator falls over a split whose shape is unknown."""
    return parsed(
        """g (float[3,6] x, int64 n) => (float[3,6] y) {
          [pieces] s = SplitToSequence <axis=1> (x, n)
          [join] y = ConcatFromSequence <axis=1> (s)
        }"""
    )


@refused
def sequence_left():
    """Which piece is taken is only known when it runs, so folding leaves the list."""
    return parsed(
        """g (float[2,3] x, int64 i) => (float[1,3] y) {
          [pieces] s = SplitToSequence(x)
          [pick] y = SequenceAt(s, i)
        }"""
    )
