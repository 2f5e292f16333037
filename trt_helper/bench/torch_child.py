"""Time the module that the model was exported from, in PyTorch: eager, FP32, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trt_helper.bench.clock import Send, answer, feed_of, memory_before
from trt_helper.errors import MachineError
from trt_helper.export.archive import Kind
from trt_helper.export.checkpoint import read_checkpoint
from trt_helper.export.run import module_of
from trt_helper.export.specs import Input, parse_arguments
from trt_helper.export.target import RUN, as_array, export_target
from trt_helper.export.user_code import importable, user_code
from trt_helper.values import Array


def run(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Time the request of `measure`.

    Inputs of the model are passed to the module by name, otherwise in order. The speed does not depend on the
    weights, so missing and unexpected weights give warnings and no error.

    Raises:
        MachineError: A GPU is requested that PyTorch cannot use.
        TrtHelperError: The errors of `export`.
    """
    device = request["device"]
    before = memory_before(device=device == "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"PyTorch {torch.__version__} cannot use a GPU here", fix="install a PyTorch that is built for CUDA"
        )
    torch.backends.cudnn.allow_tf32 = False  # no TF32 in convolutions either; for products this is PyTorch's default
    feed = feed_of(request)
    with importable(request["model"], by_libraries=request["trust"]):
        read = read_checkpoint(Path(request["checkpoint"]), trust=request["trust"])
        arguments = parse_arguments(request["model_args"])
        module, _, notes = module_of(read, request["model"], arguments, None, allow_missing=True)
        inputs = tuple(Input(name, array.shape, array.dtype.name) for name, array in feed.items())
        target = export_target(module, () if read.kind is Kind.PROGRAM else inputs)
        flat, arrays = target.flat(target.module.to(device)), list(feed.values())

        def infer() -> list[Array]:
            with torch.inference_mode():
                copies = [
                    torch.from_numpy(array.copy()).to(device) for array in arrays
                ]  # the module may modify its inputs
                return [as_array(found) for found in flat(*copies)]

        with user_code("the module", fix=RUN):
            found = answer([infer] * request["streams"], request, send, before)
    return {**found, "notes": notes}
