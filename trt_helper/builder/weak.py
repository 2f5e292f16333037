"""Weakly typed networks: TensorRT chooses the precision of each layer, but for the layers that it is told. 8.6 to 10.

Runs in the child process. TensorRT 11 and TensorRT-RTX have strong typing alone. What a version may lack is looked up
by name. Checked against the published bindings (`tests/tensorrt_names.json`); never executed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from trt_helper.builder.bindings import PRODUCT, trt
from trt_helper.builder.layer_info import onnx_names
from trt_helper.builder.settings import Told
from trt_helper.errors import BuildError, ConfigError

HERE = f"{PRODUCT} {trt.__version__}"
_FLAGS = ("FP16", "OBEY_PRECISION_CONSTRAINTS")
_MEMBERS = {"FP32": "FLOAT", "BF16": "BF16"}  # of trt.DataType
_FLOATS = frozenset({"FLOAT", "HALF", "BF16"})
# They hold, cast or steer, and compute nothing: none of them is told. Some versions lack some.
_LEFT_ALONE = frozenset(
    {
        *("ASSERTION", "CAST", "CONSTANT", "DEQUANTIZE", "QUANTIZE", "SHAPE"),
        *("CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT"),
        *("ITERATOR", "LOOP_OUTPUT", "RECURRENCE", "TRIP_LIMIT"),
    }
)
_MOVES = frozenset({"SHUFFLE", "SQUEEZE", "UNSQUEEZE"})  # what the parser puts between nodes, without metadata
_SHOWN = 4


def new_network(builder: Any) -> Any:
    """An empty network that is not strongly typed. Raises ConfigError where TensorRT has no other."""
    if not all(hasattr(trt.BuilderFlag, name) for name in _FLAGS) or not hasattr(trt.ILayer, "precision"):
        raise ConfigError(f"{HERE} has no weak typing", fix="use --typing strong, or TensorRT 8.6 to 10")
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)  # 8.6 needs it, 10 ignores it
    return builder.create_network(0 if explicit is None else 1 << int(explicit))


def set_flags(config: Any, told: Told) -> None:
    """Allow FP16, and BF16 where a layer is to compute in it; what a layer is told is an order and no wish."""
    for name in _FLAGS:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if "BF16" in told.precisions.values():
        if not hasattr(trt.BuilderFlag, "BF16"):
            raise ConfigError(f"{HERE} has no BF16", fix="use TensorRT 10, or search without --cures bf16")
        config.set_flag(trt.BuilderFlag.BF16)


def tell(network: Any, told: Told) -> None:
    """Give the layers of these ONNX nodes their precision and float output types, in place.

    A node may be several layers; those that hold, cast or steer, or work on integers or shapes, are left alone. This
    is what trtexec's --layerPrecisions and --layerOutputTypes do (NVIDIA/TensorRT, samples/common/sampleEngines.cpp).
    A layer that the parser adds to bring a tensor into shape is told what all its readers are told.

    Raises BuildError for pins that have no layer which could be told, and for a layer that does not take it.
    """
    missing = set(told.pins)
    readers: dict[str, set[str]] = defaultdict(set)  # tensor -> what its readers are told, "" for nothing
    for index in reversed(range(network.num_layers)):
        layer = network.get_layer(index)
        names = [name for name in _nodes(layer) if name in told.precisions]
        wanted = {told.precisions[name] for name in names}
        if layer.type.name in _MOVES and not layer.metadata and not names:
            read = set[str]().union(*(readers[tensor.name] for _, tensor in _outputs(layer)))
            wanted = read if len(read) == 1 else set()
        precision = "FP32" if "FP32" in wanted else "".join(wanted)
        if precision and _computes(layer):
            _constrain(layer, getattr(trt.DataType, _MEMBERS[precision]))
            missing.difference_update(names)
        for tensor in _inputs(layer):
            readers[tensor.name].add(precision)
    if missing:
        named = ", ".join(repr(name) for name in sorted(missing)[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise BuildError(
            f"{HERE} parsed the model into a network without a layer for {named}{more}, so the pin cannot be proven",
            fix="use --typing strong, or leave these layers out of the plan",
        )


def _nodes(layer: Any) -> tuple[str, ...]:
    """The ONNX nodes that a layer comes from: the parser names them in its metadata, older ones in its name alone."""
    return onnx_names(layer.metadata or "") or (layer.name,)


def _computes(layer: Any) -> bool:
    """Whether the layer reads or makes floats, other than to find a shape."""
    if layer.type.name in _LEFT_ALONE:
        return False
    tensors = [*_inputs(layer), *(tensor for _, tensor in _outputs(layer))]
    if any(not tensor.is_execution_tensor for _, tensor in _outputs(layer)):
        return False
    return any(tensor.dtype.name in _FLOATS and not tensor.is_shape_tensor for tensor in tensors)


def _inputs(layer: Any) -> Iterator[Any]:
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return (tensor for tensor in found if tensor is not None)  # None where it is optional


def _outputs(layer: Any) -> Iterator[tuple[int, Any]]:
    found = ((index, layer.get_output(index)) for index in range(layer.num_outputs))
    return ((index, tensor) for index, tensor in found if tensor is not None)


def _constrain(layer: Any, precision: Any) -> None:
    """Set and look again: TensorRT logs a refusal, and the bindings say nothing of it."""
    layer.precision = precision
    taken = layer.precision_is_set and layer.precision == precision
    for index, tensor in _outputs(layer):
        if tensor.dtype.name in _FLOATS:
            layer.set_output_type(index, precision)
            taken = taken and layer.output_type_is_set(index)
    if not taken:
        raise BuildError(
            f"{HERE} does not take {precision.name} as the precision of its layer {layer.name!r}",
            fix="use --typing strong, or leave that layer out of the plan",
        )
