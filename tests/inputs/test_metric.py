"""A user's metric: it decides instead of a tolerance, and its errors are shown as the user's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trt_helper.errors import InputError
from trt_helper.inputs.metric import Metric, load_metric


def share_of_hits(reference, found) -> float:
    hits = [int(r["y"].argmax() == f["y"].argmax()) for r, f in zip(reference, found, strict=True)]
    return sum(hits) / len(hits)


def answers(*winners: int) -> list[dict[str, np.ndarray]]:
    return [{"y": np.eye(4, dtype=np.float32)[winner]} for winner in winners]


RIGHT = answers(0, 1, 2, 3)
METRIC = Metric(share_of_hits, 0.75, "hits")


def test_as_good_as_fp32_is_no_error_and_the_threshold_is_just_allowed():
    assert METRIC.error_ratio(RIGHT, RIGHT) == 0
    assert METRIC.error_ratio(RIGHT, answers(0, 1, 2, 0)) == 1.0


def test_below_the_threshold_the_error_is_above_one_and_grows():
    two, three = answers(0, 1, 0, 0), answers(0, 0, 0, 0)
    assert METRIC.error_ratio(RIGHT, two) == 2.0
    assert METRIC.error_ratio(RIGHT, three) == 3.0


def test_a_threshold_that_only_fp32_reaches_allows_nothing():
    strict = Metric(share_of_hits, 1.0, "hits")
    assert strict.error_ratio(RIGHT, RIGHT) == 0
    assert strict.error_ratio(RIGHT, answers(0, 1, 2, 0)) == math.inf


def test_nan_never_passes():
    blind = Metric(lambda reference, found: 1.0 if found is reference else math.nan, 0.5, "blind")
    assert blind.error_ratio(RIGHT, answers(0, 1, 2, 3)) == math.inf


def test_a_threshold_that_fp32_misses_is_an_error_that_says_so():
    with pytest.raises(InputError, match=r"is 1 in FP32, below its threshold 2") as caught:
        Metric(share_of_hits, 2.0, "hits").error_ratio(RIGHT, RIGHT)
    assert caught.value.exit_status == 3


def test_an_error_in_the_users_function_is_shown_as_theirs():
    with pytest.raises(InputError, match="the metric bad failed: KeyError: 'z'"):
        Metric(lambda reference, _found: reference[0]["z"], 0.5, "bad").error_ratio(RIGHT, RIGHT)


def test_a_metric_is_loaded_by_file_and_function(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def figure(reference, found):\n    return len(found) / len(reference)\n")
    metric = load_metric(f"{file}:figure", 0.5)
    assert metric.name == "mine.py:figure"
    assert metric.figure(RIGHT, RIGHT[:1]) == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [("nowhere.py:f", "names no file"), ("{file}:absent", "has no function 'absent'"), ("{broken}:f", "cannot be run")],
)
def test_what_cannot_be_loaded_is_named(tmp_path, text, message):
    (tmp_path / "mine.py").write_text("figure = 3\n")
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    with pytest.raises(InputError, match=message):
        load_metric(text.format(file=tmp_path / "mine.py", broken=tmp_path / "broken.py"), 0.5)
