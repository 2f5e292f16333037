"""In the place of `builder.rtx_child`: TensorRT-RTX whose networks cannot emit what is not fused, as up to 10.15."""

from __future__ import annotations

from trt_helper.builder import rtx_child

_mark = rtx_child._mark
run = rtx_child.run


class Older:
    """The network, without what came with TensorRT 10.16."""

    def __init__(self, network):
        self.network = network

    def __getattr__(self, name):
        if name == "mark_unfused_tensors_as_debug_tensors":
            raise AttributeError(name)
        return getattr(self.network, name)


rtx_child._mark = lambda network, wanted: _mark(Older(network), wanted)
