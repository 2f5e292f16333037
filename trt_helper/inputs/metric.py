"""A metric: a function of the user, `FILE.py:function`, that judges the outputs in place of a tolerance.

    def accuracy(reference, found):  # two lists, with one dictionary of arrays by output name per sample
        hits = [f["logits"].argmax() == r["logits"].argmax() for r, f in zip(reference, found)]
        return sum(hits) / len(hits)

Higher is better. The best possible figure is that of the FP32 outputs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_helper.errors import InputError
from trt_helper.inputs.user_code import load_function
from trt_helper.values import Tensors

Function = Callable[[Sequence[Tensors], Sequence[Tensors]], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """The user's function and its threshold: a plan passes if the function returns at least `threshold`."""

    function: Function  # (reference, found) -> figure
    threshold: float
    name: str  # FILE.py:function, without folders

    def error_ratio(self, reference: Sequence[Tensors], found: Sequence[Tensors]) -> float:
        """The loss of the figure against FP32, over the largest loss that the threshold allows.

        Args:
            reference: FP32 outputs, one dictionary per sample.
            found: Outputs under a plan, in the same order.

        Returns:
            At most 1 passes, 0 is as good as FP32, inf is not a number or not allowed at all.

        Raises:
            InputError: The function fails, or FP32 itself does not reach the threshold.
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
        """The figure that the user's function returns.

        Raises:
            InputError: The function raises an exception or does not return a number.
        """
        try:
            return float(self.function(reference, found))
        except Exception as error:  # the user's code can raise anything, and only the user can fix it
            raise InputError(
                f"the metric {self.name} failed: {type(error).__name__}: {error}",
                fix="it is called with two lists of {output name: array}, one a sample, and returns a number",
            ) from error


def load_metric(text: str, threshold: float) -> Metric:
    """The metric named by `text`, which is `FILE.py:function`. The file is run.

    Raises:
        InputError: There is no such file or function, or the file raises an exception.
    """
    file, _, function = text.rpartition(":")
    if not file or not Path(file).is_file():
        raise InputError(f"--metric {text!r} names no file", fix="write it as FILE.py:function")
    try:
        found = load_function(Path(file), function)
    except Exception as error:  # the user's code can raise anything, and only the user can fix it
        raise InputError(f"{file} cannot be run: {type(error).__name__}: {error}", fix="mend the file") from error
    if found is None:
        raise InputError(f"{file} has no function {function!r}", fix="name one that takes (reference, found)")
    return Metric(found, threshold, f"{Path(file).name}:{function}")
