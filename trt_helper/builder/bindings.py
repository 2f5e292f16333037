"""Import TensorRT or TensorRT-RTX under the name `trt`.

Only the child process that builds an engine (`build_child`) may import this module: a crash of TensorRT then ends the
child and not trt-helper. The parent process (`builder.build` or `runners.run`) chooses the package with the
environment variable `PACKAGE_VARIABLE`; the default is TensorRT-RTX.
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
