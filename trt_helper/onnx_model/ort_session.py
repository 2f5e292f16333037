"""Options of the ONNX Runtime sessions that compute FP32 exactly as the model states it."""

from __future__ import annotations

import onnxruntime as ort

FATAL = 4  # log severity: ONNX Runtime's own messages are not shown to the user


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options without graph optimisation, spinning threads, a memory arena or log messages.

    Args:
        threads: Within one operator. Operators always run one after another.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
