"""Time a model on an ONNX Runtime provider, with ONNX Runtime's default settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from trt_helper.bench.clock import Send, answer, feed_of, memory_before
from trt_helper.errors import InputError, first_line
from trt_helper.runners.ort_child import CPU, open_session
from trt_helper.values import Array

FATAL = 4  # log severity: ONNX Runtime's log is not for the user


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Time the request of `measure`.

    One session serves all streams: its `run` can be called from several threads at once.

    Raises:
        MachineError: The provider does not work here.
        RunError: ONNX Runtime cannot load the model.
        InputError: The model does not run on the sample.
    """
    provider = request["provider"]
    before = memory_before(device=provider != CPU)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", request["external"])
    session, types = open_session(request["file"], options, provider)
    feed = feed_of(request, types)

    def infer() -> list[Array]:
        found: list[Array] = session.run(request["outputs"], feed)
        return found

    try:
        return answer([infer] * request["streams"], request, send, before)
    except Exception as error:  # onnxruntime has its own exception types and does not export them
        raise InputError(
            f"the model does not run on {request['source']}: {first_line(error)}",
            fix="check the inputs' shapes and values; try the model in ONNX Runtime by itself",
        ) from error
