"""Ask TensorRT which nodes of a model it refuses; this is the child process that `builder.refusals` starts.

The parser says it of most operators. Some it takes, and then no kernel implements them: for these a model of one node
is built.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from trt_helper.builder.bindings import PRODUCT, trt
from trt_helper.builder.failures import ParserComplaint, complaint_text, real_errors, reason

BUILDER = f"{PRODUCT} {trt.__version__}"


class _Log(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Parse a model, and build the small ones.

    Args:
        request: `model`, the path of a typed model; `probes`, operator to a model of one node in base64.

    Returns:
        `builder`, and `refused`: [name of the node, operator, what TensorRT says], and `unbuilt`: operator to the same.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    refused = []
    if not parser.parse_from_file(request["model"]):
        for index in range(parser.num_errors):
            found = parser.get_error(index)
            one = ParserComplaint(found.code().name, found.desc(), found.node_name(), found.node_operator())
            refused.append([one.node, one.operator, complaint_text(one)])
    unbuilt = {}
    for operator, model in request["probes"].items():
        if said := _unbuilt(base64.b64decode(model)):
            unbuilt[operator] = said
    return {"builder": BUILDER, "refused": refused, "unbuilt": unbuilt}


def _unbuilt(model: bytes) -> str:
    """What TensorRT says of a model that it does not build; empty if it does."""
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if parser.parse(model) and builder.build_serialized_network(network, builder.create_builder_config()) is not None:
        return ""
    return next((reason(line) for line in reversed(real_errors(log.errors))), "it gave no reason")
