"""The model on one of ONNX Runtime's providers, as ONNX Runtime runs it by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from trt_helper.bench.clock import Array, Send, answer, feed_of, memory_before
from trt_helper.errors import InputError, MachineError, ModelError

CPU = "CPUExecutionProvider"
FATAL = 4  # log severity: ONNX Runtime's own chatter is not for the user
_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # FP32 is FP32


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Answer `measure`. One session serves all streams: its `run` may be called from several threads at once.

    Raises MachineError without the provider, ModelError for a model that cannot be loaded, InputError where it does
    not run on the sample.
    """
    provider = request["provider"]
    before = memory_before(device=provider != CPU)
    if provider not in ort.get_available_providers():
        raise _missing(provider)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", request["external"])
    providers = [(provider, _OPTIONS.get(provider, {})), *([CPU] if provider != CPU else [])]
    try:
        session = ort.InferenceSession(request["file"], options, providers=providers)
    except Exception as error:  # onnxruntime raises its own types, which it does not export
        raise ModelError(
            f"ONNX Runtime cannot load the model: {_first_line(error)}",
            fix="export the model with operators that it implements",
        ) from error
    if session.get_providers()[0] != provider:  # it falls back to the CPU with a line on stderr
        raise _missing(provider)
    feed = feed_of(request, {value.name: _TYPES.get(value.type) for value in session.get_inputs()})

    def infer() -> list[Array]:
        found: list[Array] = session.run(request["outputs"], feed)
        return found

    try:
        return answer([infer] * request["streams"], request, send, before)
    except Exception as error:  # the same
        raise InputError(
            f"the model does not run on {request['source']}: {_first_line(error)}",
            fix="check the inputs' shapes and values; try the model in ONNX Runtime by itself",
        ) from error


def _missing(provider: str) -> MachineError:
    return MachineError(
        f"ONNX Runtime {ort.__version__} has no {provider} that works here",
        fix="pip install 'trt-helper[cuda]', and the CUDA and cuDNN libraries that it names",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
