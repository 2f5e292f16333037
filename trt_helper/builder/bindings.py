"""The TensorRT of this process: the one place that imports it.

Which of the two it is stands in the environment that `rtx.build` and `runners.run` give their child.
"""

from __future__ import annotations

import os

from trt_helper.builder.build import PACKAGE_VARIABLE

if os.environ.get(PACKAGE_VARIABLE) == "tensorrt":
    import tensorrt as trt

    PRODUCT = "TensorRT"
else:
    import tensorrt_rtx as trt

    PRODUCT = "TensorRT-RTX"

__all__ = ["PRODUCT", "trt"]
