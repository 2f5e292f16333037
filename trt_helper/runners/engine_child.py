"""Run an engine with Polygraphy's TrtRunner; this is the child process that `runners.run` starts.

Needs the GPU that the engine was built for. TrtRunner keeps its device buffers from sample to sample and determines
the output sizes. Environment variables choose between TensorRT and TensorRT-RTX (`Runner.environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from polygraphy.backend.common import BytesFromPath
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from polygraphy.logger import G_LOGGER

from trt_helper.errors import RunError, first_line
from trt_helper.runners.exchange import serve
from trt_helper.values import Array

_FLOATS = ("float16", "float32", "float64")  # Polygraphy and numpy use the same names


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the engine on the samples of `request` (see `exchange.serve`).

    Raises:
        RunError: The engine cannot be loaded or run.
    """
    G_LOGGER.module_severity = G_LOGGER.ERROR
    runner = TrtRunner(EngineFromBytes(BytesFromPath(request["file"])))
    try:
        runner.activate()
    except Exception as error:  # Polygraphy's own exception type, and RuntimeErrors of TensorRT
        raise RunError(
            f"the engine cannot be loaded: {first_line(error)}",
            fix="build it on this machine: an engine runs on the GPU and the version that it was built for",
        ) from error
    try:
        intermediates: dict[str, Array] = {}  # outputs added by the build, and debug tensors from TrtRunner
        if request["intermediates"] and hasattr(
            runner.context, "unfused_tensors_debug_state"
        ):  # TensorRT 10.16 and later
            runner.context.unfused_tensors_debug_state = True

        def infer(feed: Mapping[str, Array]) -> Sequence[Array]:
            found = runner.infer(dict(feed), check_inputs=False)
            intermediates.clear()
            intermediates.update({name: np.asarray(found[name]) for name in found if name not in request["outputs"]})
            return [np.asarray(found[name]) for name in request["outputs"]]

        return serve(request, input_types(runner), infer, intermediates)
    finally:
        runner.deactivate()


def input_types(runner: TrtRunner) -> dict[str, Any]:
    """Return the numpy types of an active engine's float inputs, by name."""
    metadata = runner.get_input_metadata(use_numpy_dtypes=False)
    return {name: np.dtype(one.dtype.name) for name, one in metadata.items() if one.dtype.name in _FLOATS}
