"""Types of the public API, for type checkers; `__init__.py` imports lazily."""

from trt_helper.builder.convert import Converted as Converted
from trt_helper.builder.convert import convert as convert
from trt_helper.builder.settings import BuildSettings as BuildSettings
from trt_helper.errors import TrtHelperError as TrtHelperError
from trt_helper.inputs.samples import Sample as Sample
from trt_helper.inputs.samples import load_samples as load_samples
from trt_helper.onnx_model.graph import Graph as Graph
from trt_helper.search.budget import Budget as Budget
from trt_helper.search.locate import locate as locate
from trt_helper.search.located import Located as Located
from trt_helper.search.saved import SavedSearch as SavedSearch
from trt_helper.search.saved import SearchInterrupted as SearchInterrupted
from trt_helper.values import Plan as Plan
from trt_helper.values import Statistic as Statistic
from trt_helper.values import Tolerance as Tolerance
from trt_helper.values import Verdict as Verdict

__version__: str
