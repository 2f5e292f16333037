"""Ask TensorRT which nodes of a model it refuses; this is the child process that `builder.refusals` starts.

The parser says it of most operators. Some it takes, and then no kernel implements them: for these a model of one node
is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trt_helper.builder.bindings import trt
from trt_helper.builder.build_child import BUILDER, Log, parse
from trt_helper.builder.failures import complaint_text, real_errors, reason


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Parse a model, and build the small ones.

    Args:
        request: `model`, the path of a typed model; `probes`, operator to the path of a model of one node.

    Returns:
        `builder`, and `refused`: [name of the node, operator, what TensorRT says], and `unbuilt`: operator to the same.
    """
    log = Log()
    _, complaints = parse(trt.Builder(log), request["model"], log)
    said = {operator: _unbuilt(model) for operator, model in request["probes"].items()}
    return {
        "builder": BUILDER,
        "refused": [[one.node, one.operator, complaint_text(one)] for one in complaints or ()],
        "unbuilt": {operator: text for operator, text in said.items() if text},
    }


def _unbuilt(model: str) -> str:
    """What TensorRT says of a model that it does not build; empty if it does."""
    log = Log()
    builder = trt.Builder(log)
    network, complaints = parse(builder, model, log)
    if complaints is None and builder.build_serialized_network(network, builder.create_builder_config()) is not None:
        return ""
    return next((reason(line) for line in reversed(real_errors(log.errors))), "it gave no reason")
