"""Time an engine with Polygraphy's TrtRunner, on the GPU that it was built for.

Each stream has its own execution context.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from polygraphy.logger import G_LOGGER

from trt_helper.bench.clock import Infer, Send, answer, feed_of, memory_before
from trt_helper.errors import RunError, first_line
from trt_helper.runners.engine_child import input_types
from trt_helper.values import Array


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Time the request of `measure`.

    Raises:
        RunError: The engine cannot be loaded or run.
    """
    G_LOGGER.module_severity = G_LOGGER.ERROR
    before = memory_before(device=True)
    with ExitStack() as stack:
        try:
            engine = EngineFromBytes(BytesFromPath(request["file"]))()
            runners = [stack.enter_context(TrtRunner(engine)) for _ in range(request["streams"])]
            feed = feed_of(request, input_types(runners[0]))
            return answer([_infer(runner, feed, request["outputs"]) for runner in runners], request, send, before)
        except Exception as error:  # Polygraphy's own exception type, and RuntimeErrors of TensorRT
            raise RunError(
                f"the engine cannot be run: {first_line(error)}",
                fix="check that the GPU has memory left: give fewer --streams or a smaller --batch",
            ) from error


def _infer(runner: TrtRunner, feed: Mapping[str, Array], outputs: list[str]) -> Infer:
    def infer() -> list[Array]:
        found = runner.infer(dict(feed), check_inputs=False)
        return [np.asarray(found[name]) for name in outputs]

    return infer
