"""A graph and a plan go in; the FP32 model and what a weakly typed network of it is to be told come out."""

from __future__ import annotations

from collections.abc import Iterable

from trt_helper.builder import Told
from trt_helper.graph import Graph
from trt_helper.hold import guard
from trt_helper.loops import state_conditions
from trt_helper.precision import assign
from trt_helper.typed import TypedModel, render
from trt_helper.values import LayerName, Plan


def untyped(graph: Graph, plan: Plan, guards: Iterable[LayerName]) -> tuple[TypedModel, Told]:
    """Return the all-FP32 model, guarded, and the precision of every node that the plan does not leave in FP16.

    These are also the layers between pins that keep a value in FP32 and those that have no FP16; only pins and guards
    have to be found.
    """
    model = render(graph, graph.all_pinned())
    added = guard(model, guards)
    state_conditions(model.model)
    narrow = assign(graph, plan).layers
    precisions = {layer.name: narrow[layer.name].name if layer.name in narrow else "FP32" for layer in graph.layers}
    told = {name: precision for name, precision in precisions.items() if precision != "FP16"}
    candidates = frozenset(graph.candidates)
    pins = (plan.fp32 | plan.bf16) & candidates | frozenset(added)
    return model, Told({**told, **dict.fromkeys(added, "FP32")}, frozenset(pins))
