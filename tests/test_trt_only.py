"""What is asked of TensorRT 10 and 11 alone, with stand-ins for their objects: no machine without a GPU can make them.

The calls are those of NVIDIA's documentation: `IAlgorithmSelector` (TensorRT 10.7, Python API) and the editable timing
cache (`samples/sampleEditableTimingCache`, TensorRT 10.8). `test_tensorrt_names` holds the names against the bindings.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_tactics import CHOSEN, EXCLUDED, FIRST, KERNEL, KEY, LOG, SECOND

pytest.importorskip("tensorrt_rtx", reason="pip install 'trt-helper[rtx]': any binding makes the module importable")
from trt_helper.builder import trt_only
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import BuildError, ConfigError


class StandInSelector:
    """As `trt.IAlgorithmSelector`: TensorRT calls both methods of what is derived from it."""


def algorithm(implementation, tactic):
    return SimpleNamespace(algorithm_variant=SimpleNamespace(implementation=implementation, tactic=tactic))


CONV, GEMM = SimpleNamespace(name="conv1 + relu1"), SimpleNamespace(name="matMul1")
FAST, SLOW = algorithm(0x80, 5), algorithm(0x80, 6)


@pytest.fixture
def selector(monkeypatch):
    monkeypatch.setattr(trt_only, "trt", SimpleNamespace(IAlgorithmSelector=StandInSelector), raising=True)
    return lambda *entries: trt_only.selector(entries)


def test_the_selector_offers_all_but_the_excluded_tactic_of_that_layer(selector):
    made = selector({"layer": "relu1", "tactic": 5})
    assert made.select_algorithms(CONV, [FAST, SLOW]) == [1]
    assert made.select_algorithms(GEMM, [FAST, SLOW]) == [0, 1]


def test_the_implementation_stands_where_later_versions_have_a_kernel(selector):
    assert selector({"layer": "conv1", "kernel": "128"}).select_algorithms(CONV, [FAST, SLOW]) == []
    assert selector({"layer": "conv1", "tactic": 5, "kernel": "7"}).select_algorithms(CONV, [FAST, SLOW]) == [0, 1]


@pytest.mark.parametrize(
    ("chosen", "error", "says"),
    [
        ([(CONV, SLOW), (GEMM, FAST)], None, ""),
        ([(CONV, FAST), (GEMM, FAST)], BuildError, r"took an excluded tactic for conv1 \+ relu1"),
        ([(GEMM, FAST)], ConfigError, "names 'conv1', for which TensorRT timed no tactics"),
    ],
)
def test_what_the_selector_is_told_at_the_end_is_the_proof(selector, chosen, error, says):
    entry = {"layer": "conv1", "tactic": 5}
    cache = SimpleNamespace(selector=selector(entry))
    cache.selector.report_algorithms([context for context, _ in chosen], [choice for _, choice in chosen])
    settings = BuildSettings(tensorrt=True, exclude_tactics=(entry,))
    if error is None:
        assert trt_only.without_excluded(b"engine", cache, settings, [], pytest.fail) == (b"engine", [])
    else:
        with pytest.raises(error, match=says):
            trt_only.without_excluded(b"engine", cache, settings, [], pytest.fail)


class Cache:
    """As `trt.ITimingCache` where it is editable: `update` knows the keys of the build that made it."""

    def __init__(self, known):
        self.known, self.updates = known, []

    def update(self, key, value):
        self.updates.append((key, value.tactic))
        return key in self.known


class Logger:
    ERROR = 1

    def __init__(self, _severity):
        pass


def editable(monkeypatch, kernel_of):
    """A TensorRT whose engines are `b"first"` and `b"second"`, with matMul1 on what `kernel_of` says of them."""
    inspectors = {
        plan: SimpleNamespace(
            get_engine_information=lambda _format, kernel=kernel: json.dumps(
                {"Layers": [{"Name": "matMul1_myl0_0", "LayerType": "gemm", "TacticName": kernel}]}
            )
        )
        for plan, kernel in kernel_of.items()
    }
    runtime = SimpleNamespace(
        deserialize_cuda_engine=lambda plan: SimpleNamespace(create_engine_inspector=lambda: inspectors[plan])
    )
    stand_in = SimpleNamespace(
        __version__="10.8.0.43",
        Logger=Logger,
        Runtime=lambda _logger: runtime,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        TimingCacheKey=SimpleNamespace(parse=lambda text: text),
        TimingCacheValue=lambda tactic, milliseconds: SimpleNamespace(tactic=tactic, milliseconds=milliseconds),
    )
    monkeypatch.setattr(trt_only, "trt", stand_in)


def timing_cache(known):
    made = object.__new__(trt_only.TimingCache)
    made.cache, made.selector, made.path = Cache(known), None, None
    return made


SETTINGS = BuildSettings(tensorrt=True, exclude_tactics=tuple(EXCLUDED))


def test_the_other_tactic_is_written_to_the_cache_and_seen_in_the_second_engine(monkeypatch):
    editable(monkeypatch, {b"first": CHOSEN, b"second": KERNEL})
    cache = timing_cache({KEY})
    assert trt_only.without_excluded(b"first", cache, SETTINGS, [LOG], lambda: b"second") == (b"second", [])
    assert cache.cache.updates == [(KEY, SECOND)]


def test_a_second_engine_with_the_excluded_kernel_is_no_result(monkeypatch):
    editable(monkeypatch, {b"second": CHOSEN})
    with pytest.raises(BuildError, match=f"TensorRT took {CHOSEN} for 'matMul1' instead of"):
        trt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [LOG], lambda: b"second")


def test_a_key_that_the_cache_does_not_know_is_said(monkeypatch):
    editable(monkeypatch, {})
    with pytest.raises(BuildError, match="does not know the operation 'matMul1' in its timing cache"):
        trt_only.without_excluded(b"first", timing_cache(set()), SETTINGS, [LOG], pytest.fail)


def test_nothing_is_built_again_where_the_first_engine_is_right_already(monkeypatch):
    editable(monkeypatch, {b"first": KERNEL})
    log = LOG.replace(f"cost(in ms)):{hex(FIRST)}", f"cost(in ms)):{hex(SECOND)}")
    assert trt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [log], pytest.fail) == (b"first", [])


def test_an_engine_that_the_second_build_did_not_make_is_none(monkeypatch):
    editable(monkeypatch, {})
    assert trt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [LOG], lambda: None) == (None, [])
