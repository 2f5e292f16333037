"""A user's own question instead of a tolerance: `FILE.py:function` judges the outputs by one figure.

    def accuracy(reference, found):  # lists, one dictionary of arrays by output name a sample
        hits = [f["logits"].argmax() == r["logits"].argmax() for r, f in zip(reference, found)]
        return sum(hits) / len(hits)

Higher is better, and what the FP32 outputs themselves reach is as good as it gets.
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_helper.errors import InputError
from trt_helper.values import Tensors

Function = Callable[[Sequence[Tensors], Sequence[Tensors]], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A plan passes when `function` gives at least `threshold`."""

    function: Function
    threshold: float
    name: str

    def error_ratio(self, reference: Sequence[Tensors], found: Sequence[Tensors]) -> float:
        """How far the figure has fallen, over how far it may fall: at most 1 passes, 0 is as good as FP32.

        Raises InputError when the function fails, or when FP32 itself does not reach the threshold.
        """
        best, figure = self.figure(reference, reference), self.figure(reference, found)
        if not best >= self.threshold:
            raise InputError(
                f"the metric {self.name} is {best:g} in FP32, below its threshold {self.threshold:g}",
                fix="lower --metric-threshold: no precision can do better than FP32",
            )
        if math.isnan(figure):
            return math.inf
        if figure >= self.threshold:
            return (best - figure) / (best - self.threshold) if best > max(self.threshold, figure) else 0.0
        allowed = best - self.threshold
        return (best - figure) / allowed if allowed else math.inf

    def figure(self, reference: Sequence[Tensors], found: Sequence[Tensors]) -> float:
        """What the user's function says."""
        try:
            return float(self.function(reference, found))
        except Exception as error:  # it is the user's code: whatever it raises is theirs to mend
            raise InputError(
                f"the metric {self.name} failed: {type(error).__name__}: {error}",
                fix="it is called with two lists of {output name: array}, one a sample, and returns a number",
            ) from error


def load_metric(text: str, threshold: float) -> Metric:
    """The metric that `FILE.py:function` names. Raises InputError."""
    file, _, function = text.rpartition(":")
    if not file or not Path(file).is_file():
        raise InputError(f"--metric {text!r} names no file", fix="write it as FILE.py:function")
    try:
        found = runpy.run_path(file).get(function)
    except Exception as error:  # it is the user's code: whatever it raises is theirs to mend
        raise InputError(f"{file} cannot be run: {type(error).__name__}: {error}", fix="mend the file") from error
    if not callable(found):
        raise InputError(f"{file} has no function {function!r}", fix="name one that takes (reference, found)")
    return Metric(found, threshold, f"{Path(file).name}:{function}")
