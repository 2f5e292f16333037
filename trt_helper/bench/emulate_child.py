"""Time one emulated trial of a plan: the cost of a trial in `locate`, not the speed of any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_helper.bench.clock import Send, answer, feed_of, memory_before
from trt_helper.emulator.emulator import Emulator
from trt_helper.onnx_model.graph import load_graph
from trt_helper.values import Array, Plan, Rewrite


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Time the request of `measure`."""
    before = memory_before()
    graph = load_graph(request["file"], [Rewrite(**rewrite) for rewrite in request["cures"]])
    emulator, feed = Emulator(graph), feed_of(request)
    plan = Plan(frozenset(request["fp32"]), frozenset(request["bf16"]))

    def infer() -> list[Array]:
        whole = dict(feed)  # a new dictionary each time: with the same one the emulator reuses results
        return list(emulator.run(plan, whole).values())

    return answer([infer] * request["streams"], request, send, before)
