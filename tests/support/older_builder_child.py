"""In the place of `builder.build_child`: TensorRT-RTX whose networks cannot emit what is not fused, as up to 10.15."""

from __future__ import annotations

import os

from trt_helper.builder import build_child

_mark = build_child._mark
run = build_child.run


class Older:
    """The network, without what came with TensorRT 10.16, or with nothing that it could emit."""

    def __init__(self, network):
        self.network = network

    def __getattr__(self, name):
        if name == "mark_unfused_tensors_as_debug_tensors":
            if os.environ["OLDER_BUILDER"] == "lacks them":
                raise AttributeError(name)
            return lambda: False
        return getattr(self.network, name)


build_child._mark = lambda network, wanted: _mark(Older(network), wanted)
