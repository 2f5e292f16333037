"""trt-helper: the smallest set of layers that must stay in FP32, applied, proven and guarded."""

__version__ = "0.1.0"
