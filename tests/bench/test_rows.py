"""The rows of `bench`: percentiles, throughput, and how many streams overlapped."""

from __future__ import annotations

import numpy as np
import pytest

from trt_helper.bench.rows import percentile, times


@pytest.mark.parametrize("count", [1, 2, 9, 10, 30, 101])
def test_the_statistics_are_those_of_numpy(count):
    """One stream: latencies drawn from a skewed distribution, a pause after each."""
    generator = np.random.default_rng(count)
    latencies, pauses = generator.exponential(0.01, count), generator.exponential(0.001, count)
    begins = np.cumsum(latencies + pauses) - latencies
    spans = list(zip(begins, begins + latencies, strict=True))
    generator.shuffle(spans)
    found = times(spans)
    assert found.median == pytest.approx(np.median(latencies))
    for share, given in ((0.9, found.p90), (0.99, found.p99)):
        assert given == pytest.approx(np.percentile(latencies, 100 * share, method="inverted_cdf"))
    assert found.throughput == pytest.approx(count / (latencies.sum() + pauses[1:].sum()))
    assert found.at_once == 1


def test_streams_are_counted_by_what_overlapped():
    """Three inferences of 4 s in two streams: 8 s in all, the last one alone."""
    found = times([(10.0, 14.0), (10.0, 14.0), (14.0, 18.0)])
    assert (found.median, found.p90, found.throughput, found.at_once) == (4, 4, 3 / 8, 2)
    assert times([(0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]).at_once == 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (0.0, 1.0)])
def test_percentiles_are_by_nearest_rank(share, expected):
    assert percentile([float(value) for value in range(1, 11)], share) == expected
