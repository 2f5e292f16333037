"""The options of the ONNX Runtime session that a runner opens."""

from __future__ import annotations

from trt_helper.runners import ort_child


def test_on_cuda_fp32_is_fp32_and_each_run_takes_the_same_algorithm(monkeypatch):
    """TF32 is on by default there and rounds to 10 bits. What the session is given; nothing runs."""
    requested = {}

    class Session:
        def __init__(self, _file, _options, providers):
            requested.update(dict(one for one in providers if isinstance(one, tuple)))

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self):
            return []

    monkeypatch.setattr(ort_child.ort, "InferenceSession", Session)
    monkeypatch.setattr(ort_child.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    ort_child.open_session("m.onnx", None, "CUDAExecutionProvider")
    assert requested["CUDAExecutionProvider"] == {"use_tf32": "0"}
    ort_child.open_session("m.onnx", None, "CUDAExecutionProvider", ort_child.SAME_EACH_TIME)
    assert requested["CUDAExecutionProvider"] == {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
