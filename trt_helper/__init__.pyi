"""Types of the public API, for type checkers; `__init__.py` imports lazily."""

from trt_helper.builder.convert import Converted, convert
from trt_helper.builder.settings import BuildSettings
from trt_helper.errors import TrtHelperError
from trt_helper.inputs.sample import Sample
from trt_helper.inputs.samples import load_samples
from trt_helper.onnx_model.graph import Graph
from trt_helper.onnx_model.graph import load_graph as load
from trt_helper.search.budget import Budget
from trt_helper.search.locate import locate
from trt_helper.search.located import Located
from trt_helper.search.saved import SavedSearch, SearchInterrupted
from trt_helper.values import Plan, Reading, Statistic, Tolerance, Verdict

__version__: str

__all__ = [
    "Budget",
    "BuildSettings",
    "Converted",
    "Graph",
    "Located",
    "Plan",
    "Reading",
    "Sample",
    "SavedSearch",
    "SearchInterrupted",
    "Statistic",
    "Tolerance",
    "TrtHelperError",
    "Verdict",
    "convert",
    "load",
    "load_samples",
    "locate",
]
