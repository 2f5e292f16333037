"""Runs an engine with Polygraphy's TrtRunner, in the child process that `run.execute` starts. Needs the engine's GPU.

TrtRunner keeps its device buffers from sample to sample and finds the outputs' sizes by itself. Which TensorRT it takes
stands in the environment.
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

_FLOATS = ("float16", "float32", "float64")  # Polygraphy's names of types are numpy's


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Answer `run.execute`. Raises RunError for an engine that cannot be loaded or run."""
    G_LOGGER.module_severity = G_LOGGER.ERROR
    runner = TrtRunner(EngineFromBytes(BytesFromPath(request["file"])))
    try:
        runner.activate()
    except Exception as error:  # Polygraphy raises a type of its own, and RuntimeErrors of TensorRT
        raise RunError(
            f"the engine cannot be loaded: {first_line(error)}",
            fix="build it on this machine: an engine runs on the GPU and the version that it was built for",
        ) from error
    try:
        heard: dict[str, Array] = {}  # tensors made outputs, and debug tensors: TrtRunner's listener adds them
        if request["listen"] and hasattr(runner.context, "unfused_tensors_debug_state"):  # from 10.16 on
            runner.context.unfused_tensors_debug_state = True

        def infer(feed: Mapping[str, Array]) -> Sequence[Array]:
            found = runner.infer(dict(feed), check_inputs=False)
            heard.clear()
            heard.update({name: np.asarray(found[name]) for name in found if name not in request["outputs"]})
            return [np.asarray(found[name]) for name in request["outputs"]]

        return serve(request, input_types(runner), infer, heard)
    finally:
        runner.deactivate()


def input_types(runner: TrtRunner) -> dict[str, Any]:
    """Numpy's types of an active engine's float inputs, by name."""
    metadata = runner.get_input_metadata(use_numpy_dtypes=False)
    return {name: np.dtype(one.dtype.name) for name, one in metadata.items() if one.dtype.name in _FLOATS}
