"""Runs a typed model with one of ONNX Runtime's providers, in the child process that `run.execute` starts.

CUDA computes FP16 nodes in FP16. The CPU provider does not, and serves to test what lies around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from trt_helper.errors import MachineError, RunError
from trt_helper.kernels import session_options
from trt_helper.runners.exchange import serve

_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
# TF32 would round the FP32 layers to 10 bits, and the fastest convolution differs from run to run.
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}}


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Answer `run.execute`. Raises MachineError without the provider and RunError for a model that fails."""
    provider = request["provider"]
    missing = MachineError(
        f"ONNX Runtime {ort.__version__} has no {provider} that works here",
        fix="pip install 'trt-helper[cuda]', and the CUDA and cuDNN libraries that it names",
    )
    if provider not in ort.get_available_providers():
        raise missing
    options = session_options()
    options.use_deterministic_compute = True
    try:
        session = ort.InferenceSession(
            request["file"], options, providers=[(provider, _OPTIONS.get(provider, {})), "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own types, which it does not export
        raise RunError(
            f"ONNX Runtime cannot load the typed model: {str(error).splitlines()[0][:300]}",
            fix="run it as an engine instead: --runner tensorrt",
        ) from error
    if session.get_providers()[0] != provider:  # it falls back to the CPU with a line on stderr
        raise missing
    types = {value.name: _TYPES.get(value.type) for value in session.get_inputs()}
    return serve(request, types, lambda feed: session.run(request["outputs"], dict(feed)))
