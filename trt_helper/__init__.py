"""trt-helper: the smallest set of layers that must stay in FP32, applied, proven and guarded.

The public Python API; nothing heavy is imported before it is used:

    from trt_helper import Tolerance, load, load_samples, locate

    graph = load("model.onnx")
    located = locate(graph, load_samples(graph, ["samples"]), Tolerance(atol=0.01, rtol=0))
    print(located.pins, located.after.outputs)
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {  # name: the module that defines it, and its name there where that is another
    "BuildSettings": "builder.settings",
    "Budget": "search.budget",
    "Converted": "builder.convert",
    "Graph": "onnx_model.graph",
    "Located": "search.located",
    "Plan": "values",
    "Reading": "values",
    "Sample": "inputs.sample",
    "SavedSearch": "search.saved",
    "SearchInterrupted": "search.saved",
    "Statistic": "values",
    "Tolerance": "values",
    "TrtHelperError": "errors",
    "Verdict": "values",
    "convert": "builder.convert",
    "load": "onnx_model.graph:load_graph",
    "load_samples": "inputs.samples",
    "locate": "search.locate",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), other or name)


def __dir__() -> list[str]:
    return __all__
