"""Compare an engine's intermediate tensors with the FP32 reference and with the emulator.

The result is information for the user and never changes a verdict. An engine has its own names for the tensors between
its kernels, so a tensor is matched to an ONNX tensor only if the match is unambiguous. A tensor that was made an output
keeps its ONNX name, but making it an output changes what is fused.
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
"""ONNX tensor -> (array that the engine computed, kernel that produced it)."""


def intermediate_tensors(graph: Graph, plan: Plan) -> tuple[TensorName, ...]:
    """Return the intermediate tensors to request, in the graph's order: outputs of layers that compute.

    Outputs of BF16 layers are left out, because numpy has no BF16.
    """
    layers = (layer for layer in graph.layers if layer.role is Role.COMPUTE and layer.name not in plan.bf16)
    return tuple(name for layer in layers for name in layer.outputs if name not in graph.outputs)


def attributed(layers: Sequence[EngineLayer], graph: Graph) -> dict[str, tuple[TensorName, EngineLayer]]:
    """Match the engine's tensors to ONNX tensors.

    A kernel with one output produces an ONNX tensor if only that tensor leaves the kernel's ONNX layers. A tensor that
    two kernels may produce is left out.

    Returns:
        The engine's name of a tensor -> (ONNX tensor, kernel that produces it).
    """
    found = {}
    for one in layers:
        leaving = _leaving(one, graph) if len(one.outputs) == 1 else ()
        if len(leaving) == 1:
            found[one.outputs[0].name] = (leaving[0], one)
    times = Counter(tensor for tensor, _ in found.values())
    return {name: value for name, value in found.items() if times[value[0]] == 1}


def _leaving(one: EngineLayer, graph: Graph) -> tuple[TensorName, ...]:
    """Return the tensors that a kernel's ONNX layers produce for the graph's outputs or for layers of other kernels."""
    group = frozenset(one.onnx_layers)
    outputs = frozenset(graph.outputs)
    elsewhere = {name for layer in graph.layers if layer.name not in group for name in layer.inputs}
    produced = (name for layer in graph.layers if layer.name in group for name in layer.outputs)
    return tuple(name for name in produced if name in outputs or name in elsewhere)


def computed_tensors(engine: EngineBuild, graph: Graph, intermediates: Tensors) -> Computed:
    """Match the intermediate tensors of an engine run to ONNX tensors.

    Args:
        engine: The engine's facts.
        graph: The model that it was built from.
        intermediates: The tensors by the engine's names, as `run.run_for_intermediates` returns them.

    Returns:
        ONNX tensor -> (array, kernel that produced it); ambiguous tensors are left out.
    """
    if not engine.marked:
        known = attributed(engine.layers, graph)
        return {
            tensor: (intermediates[name], kernel) for name, (tensor, kernel) in known.items() if name in intermediates
        }
    kernels = {tensor.name: one for one in engine.layers for tensor in one.outputs}
    return {
        name: (intermediates[name], kernels[name])
        for name in engine.marked
        if name in intermediates and name in kernels
    }


def intermediate_errors(
    emulator: Emulator, plan: Plan, feed: Mapping[TensorName, Array], found: Computed, tolerance: Tolerance
) -> tuple[IntermediateError, ...]:
    """Compare each intermediate tensor with the FP32 reference, as the engine computed it and as the emulator does.

    Tensors whose shape is not that of the ONNX tensor are left out, because the match must be wrong.

    Args:
        emulator: Emulates FP16 and computes the reference.
        plan: The plan that the engine was built with.
        feed: The sample that the engine was run on, by input name.
        found: The engine's tensors, from `computed`.
        tolerance: Counts the elements outside of it.

    Returns:
        One entry per tensor, in the graph's order.
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
    """Return a warning about tensors whose error FP16 does not explain; None if there are none.

    Args:
        found: The errors of the intermediate tensors.
        excludable: Whether tactics can be excluded; the warning then names the entry for TRT_EXCLUDE_TACTIC.
    """
    farther = [one for one in found if one.is_farther]
    if not farther:
        return None
    first = farther[0]
    entry = json.dumps([{"layer": first.layer, "kernel": first.tactic}])  # JSON is also valid YAML
    other = f"; locate --config with TRT_EXCLUDE_TACTIC: {entry} tries another kernel"
    return (
        f"{len(farther)} of {len(found)} tensors in the engine are farther off than FP16 explains, first that "
        f"of {first.layer!r} ({first.engine.max:.2g}, emulated {first.emulated.max:.2g}): a fusion or a kernel"
        + (other if excludable and first.tactic else "")
    )
