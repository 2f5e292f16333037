"""Run a typed model with an ONNX Runtime provider; this is the child process that `runners.run` starts.

The CUDA provider computes FP16 nodes in FP16. The CPU provider does not; here it only serves to test this code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from trt_helper.errors import MachineError, RunError, first_line
from trt_helper.onnx_model.ort_session import session_options
from trt_helper.runners.exchange import NO_TYPES, serve

_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
CPU = "CPUExecutionProvider"
FP32_IS_FP32 = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # TF32 would round the FP32 layers to 10 bits
SAME_EACH_TIME = {
    "CUDAExecutionProvider": {"cudnn_conv_algo_search": "DEFAULT"}
}  # the fastest algorithm differs from run to run


def run(request: Mapping[str, Any], _send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the typed model on the samples of `request` (see `exchange.serve`).

    Raises:
        MachineError: The provider does not work here.
        RunError: The model cannot be loaded or run.
    """
    options = session_options()
    options.use_deterministic_compute = True
    session, types = open_session(request["file"], options, request["provider"], SAME_EACH_TIME)
    return serve(request, types, lambda feed: session.run(request["outputs"], dict(feed)))


def open_session(
    file: str, options: ort.SessionOptions, provider: str, more: Mapping[str, Mapping[str, str]] = NO_TYPES
) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """Load a model on a provider; nodes that the provider lacks run on the CPU.

    Args:
        file: Path of the model.
        options: Session options.
        provider: ONNX Runtime's name of the provider.
        more: Further provider options, by provider.

    Returns:
        The session, and the numpy types of its float inputs by name.

    Raises:
        MachineError: The provider does not work here.
        RunError: ONNX Runtime cannot load the model.
    """
    missing = MachineError(
        f"ONNX Runtime {ort.__version__} has no {provider} that works here",
        fix="pip install 'trt-helper[cuda]', and the CUDA and cuDNN libraries that it names",
    )
    if provider not in ort.get_available_providers():
        raise missing
    chosen = {**FP32_IS_FP32.get(provider, {}), **more.get(provider, {})}
    try:
        session = ort.InferenceSession(
            file, options, providers=[(provider, chosen), *([CPU] if provider != CPU else [])]
        )
    except Exception as error:  # onnxruntime has its own exception types and does not export them
        raise RunError(
            f"ONNX Runtime cannot load the model: {first_line(error)}",
            fix="export the model with operators that it implements, or run it as an engine: --runner tensorrt",
        ) from error
    if session.get_providers()[0] != provider:  # it falls back to the CPU with a line on stderr
        raise missing
    return session, {value.name: _TYPES.get(value.type) for value in session.get_inputs()}
