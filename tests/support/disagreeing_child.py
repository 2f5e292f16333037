"""In the place of `runners.ort_child`: after a warm-up each of eight runs gives another answer, 1 to 8."""

from __future__ import annotations

import itertools

import numpy as np

from trt_helper.runners.exchange import serve


def run(request, _send):
    runs = itertools.cycle(range(9))
    return serve(request, {}, lambda feed: [np.full([len(feed["x"]), 4], next(runs), np.float32)])
