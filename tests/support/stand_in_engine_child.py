"""In the place of `runners.engine_child`: the engine computes what the test left in a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from trt_helper.runners.exchange import serve


def run(request, _send):
    with np.load(Path(os.environ["STAND_IN_ENGINE"]), allow_pickle=False) as archive:
        known = {name: archive[f"arr_{index}"] for index, name in enumerate(archive["names"])}
    intermediates = {name: array for name, array in known.items() if name not in request["outputs"]}
    return serve(request, {}, lambda _feed: [known[name] for name in request["outputs"]], intermediates)
