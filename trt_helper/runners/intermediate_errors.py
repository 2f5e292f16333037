"""Tensors that an engine computed go in; how far off each layer is, in the engine and emulated, comes out.

Evidence, and no verdict. An engine names the tensors between its kernels in its own way, so that a tensor is taken for
that of an ONNX layer only where one tensor alone can be meant; what was made an output keeps its name, and changes the
engine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.layer_info import EngineLayer
from trt_helper.emulator.compare import compare
from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import Graph
from trt_helper.values import Array, IntermediateError, Plan, Role, TensorName, Tensors, Tolerance

Computed = Mapping[TensorName, tuple[Array, EngineLayer]]
"""ONNX tensor -> what an engine computed for it, and its kernel."""


def to_hear(graph: Graph, plan: Plan) -> tuple[TensorName, ...]:
    """The tensors between layers that compute, in their order. BF16 ones are left out: numpy has no such type."""
    layers = (layer for layer in graph.layers if layer.role is Role.COMPUTE and layer.name not in plan.bf16)
    return tuple(name for layer in layers for name in layer.outputs if name not in graph.outputs)


def attributed(layers: Sequence[EngineLayer], graph: Graph) -> dict[str, tuple[TensorName, EngineLayer]]:
    """The engine's name of a tensor -> the ONNX tensor that it is, and its kernel.

    A kernel with one output, from whose ONNX layers one tensor alone leads out, made that one. A tensor that two
    kernels might have made is left out.
    """
    found = {}
    for one in layers:
        leaving = _leaving(one, graph) if len(one.outputs) == 1 else ()
        if len(leaving) == 1:
            found[one.outputs[0].name] = (leaving[0], one)
    times = Counter(tensor for tensor, _ in found.values())
    return {name: value for name, value in found.items() if times[value[0]] == 1}


def _leaving(one: EngineLayer, graph: Graph) -> tuple[TensorName, ...]:
    """What the ONNX layers in `one` make for others: graph outputs, and tensors that a layer outside of it reads."""
    group = frozenset(one.onnx_layers)
    outputs = frozenset(graph.outputs)
    elsewhere = {name for layer in graph.layers if layer.name not in group for name in layer.inputs}
    made = (name for layer in graph.layers if layer.name in group for name in layer.outputs)
    return tuple(name for name in made if name in outputs or name in elsewhere)


def computed(engine: EngineBuild, graph: Graph, heard: Tensors) -> Computed:
    """What was `heard` of an engine, by the ONNX tensor that it is, with the kernel that made it."""
    if not engine.marked:
        known = attributed(engine.layers, graph)
        return {tensor: (heard[name], kernel) for name, (tensor, kernel) in known.items() if name in heard}
    kernels = {tensor.name: one for one in engine.layers for tensor in one.outputs}
    return {name: (heard[name], kernels[name]) for name in engine.marked if name in heard and name in kernels}


def intermediate_errors(
    emulator: Emulator, plan: Plan, feed: Mapping[TensorName, Array], found: Computed, tolerance: Tolerance
) -> tuple[IntermediateError, ...]:
    """What an engine computed against FP32, next to what is emulated, in the graph's order.

    Tensors of another shape than ONNX gives them are left out: they are not what they were taken for.
    """
    return tuple(
        IntermediateError(
            step.layer.name,
            name,
            found[name][1].name,
            compare(name, found[name][0], reference, tolerance),
            compare(name, step.accumulated[name], reference, tolerance),
            found[name][1].tactic,
        )
        for step in emulator.walk(plan, feed)
        for name, reference in step.reference.items()
        if name in found and found[name][0].shape == reference.shape and reference.dtype.kind == "f"
    )


def complaint(found: Sequence[IntermediateError], *, excludable: bool) -> str | None:
    """What to say of tensors that precision does not explain; with what to exclude, where tactics can be."""
    farther = [one for one in found if one.is_farther]
    if not farther:
        return None
    first = farther[0]
    entry = json.dumps([{"layer": first.layer, "kernel": first.tactic}])  # which is YAML, too
    other = f"; locate --config with TRT_EXCLUDE_TACTIC: {entry} tries another kernel"
    return (
        f"{len(farther)} of {len(found)} tensors in the engine are farther off than FP16 explains, first that "
        f"of {first.layer!r} ({first.engine.max:.2g}, emulated {first.emulated.max:.2g}): a fusion or a kernel"
        + (other if excludable and first.tactic else "")
    )
