"""What is requested of TensorRT 10 and 11 alone, with stand-ins for their objects, which need a GPU.

The calls are those of NVIDIA's documentation of the editable timing cache (`samples/sampleEditableTimingCache`,
TensorRT 10.8). `test_tensorrt_names` holds the names against the bindings.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from support.tensorrt_texts import CHOSEN, EXCLUDED, FIRST, KERNEL, KEY, LOG, SECOND

pytest.importorskip("tensorrt_rtx", reason="pip install 'trt-helper[rtx]': any binding makes the module importable")
from trt_helper.builder import tensorrt_only
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import BuildError, ConfigError


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
    monkeypatch.setattr(tensorrt_only, "trt", stand_in)


def timing_cache(known):
    made = object.__new__(tensorrt_only.TimingCache)
    made.cache, made.path = Cache(known), None
    return made


SETTINGS = BuildSettings(tensorrt=True, exclude_tactics=tuple(EXCLUDED))


def test_the_other_tactic_is_written_to_the_cache_and_seen_in_the_second_engine(monkeypatch):
    editable(monkeypatch, {b"first": CHOSEN, b"second": KERNEL})
    cache = timing_cache({KEY})
    assert tensorrt_only.without_excluded(b"first", cache, SETTINGS, [LOG], lambda: b"second") == (b"second", [])
    assert cache.cache.updates == [(KEY, SECOND)]


def test_a_second_engine_with_the_excluded_kernel_is_no_result(monkeypatch):
    editable(monkeypatch, {b"second": CHOSEN})
    with pytest.raises(BuildError, match=f"TensorRT took {CHOSEN} for 'matMul1' instead of"):
        tensorrt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [LOG], lambda: b"second")


def test_a_key_that_the_cache_does_not_know_is_said(monkeypatch):
    editable(monkeypatch, {})
    with pytest.raises(BuildError, match="does not know the operation 'matMul1' in its timing cache"):
        tensorrt_only.without_excluded(b"first", timing_cache(set()), SETTINGS, [LOG], pytest.fail)


def test_nothing_is_built_again_where_the_first_engine_is_right_already(monkeypatch):
    editable(monkeypatch, {b"first": KERNEL})
    log = LOG.replace(f"cost(in ms)):{hex(FIRST)}", f"cost(in ms)):{hex(SECOND)}")
    assert tensorrt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [log], pytest.fail) == (b"first", [])


def test_an_engine_that_the_second_build_did_not_make_is_none(monkeypatch):
    editable(monkeypatch, {})
    assert tensorrt_only.without_excluded(b"first", timing_cache({KEY}), SETTINGS, [LOG], lambda: None) == (None, [])


def test_tensorrt_before_10_8_cannot_exclude_tactics(monkeypatch):
    monkeypatch.setattr(tensorrt_only, "trt", SimpleNamespace(BuilderFlag=SimpleNamespace()))
    monkeypatch.setattr(tensorrt_only, "TimingCache", lambda _config, _settings: None)
    with pytest.raises(ConfigError, match="cannot exclude tactics") as caught:
        tensorrt_only.prepare(None, SETTINGS)
    assert caught.value.fix == "build with TensorRT 10.8 or later"
