"""One of ONNX's own test models for every operator."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from onnx.backend.test.case.node import collect_testcases

from support.models import Case


@cache
def cases() -> dict[str, Case]:
    """For every operator the first test model that reads FP32 and nothing that numpy lacks."""
    found: dict[str, Case] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for test in collected:
        (arrays, _), *_ = test.data_sets
        nodes = test.model.graph.node
        plain = all(isinstance(array, np.ndarray) and array.dtype.isbuiltin for array in arrays)
        if plain and len(nodes) == 1 and any(array.dtype == np.float32 for array in arrays):
            feed = dict(zip((value.name for value in test.model.graph.input), arrays, strict=True))
            found.setdefault(nodes[0].op_type, Case(nodes[0].op_type, test.model, feed))
    return found
