"""Writes docs/operators.md: what trt-helper and TensorRT-RTX do with each operator of the ONNX standard.

Each row has a model of its own: one of ONNX's own tests of that operator, or one of `OWN`. An engine is built of it, on
the CPU, with nothing pinned; if that fails, once more with everything in FP32.

    python benchmarks/operators.py             # some five minutes on two cores
    python benchmarks/operators.py Softmax     # the rows of these operators alone
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
from onnx import numpy_helper, parser  # noqa: E402
from support.corpus import forked, node_cases, parser_words  # noqa: E402

from trt_helper import __version__  # noqa: E402
from trt_helper.builder.build import build  # noqa: E402
from trt_helper.builder.failures import reason  # noqa: E402
from trt_helper.builder.settings import BuildSettings  # noqa: E402
from trt_helper.errors import ModelError, TrtHelperError  # noqa: E402
from trt_helper.onnx_model.branches import is_select  # noqa: E402
from trt_helper.onnx_model.graph import Graph, load_graph, subgraphs  # noqa: E402
from trt_helper.onnx_model.roles import SHAPE_INPUTS, TYPED_BY_ATTRIBUTE, picks  # noqa: E402
from trt_helper.onnx_model.typed import render, state_conditions, write  # noqa: E402
from trt_helper.values import Plan, Role  # noqa: E402

PAGE = ROOT / "docs" / "operators.md"
OLDEST, NEWEST = 7, 24  # opsets; a model is of a newer one only where the operator needs it
TIME_LIMIT = 120.0  # seconds for one build

# Models for operators where ONNX has no test that is like what exporters write.
OWN = {
    "Cast": (17, "agraph (float[3] x) => (int32[3] y) { y = Cast<to=6>(x) }"),
    "CastLike": (17, "agraph (float[3] x, int32[3] z) => (int32[3] y) { y = CastLike(x, z) }"),
    "ConcatFromSequence": (
        17,
        "agraph (float[2,3] x, float[2,3] z) => (float[4,3] y) "
        "{ s = SequenceConstruct(x, z)  y = ConcatFromSequence<axis=0>(s) }",
    ),
    "Constant": (
        17,
        "agraph (float[3] x) => (float[3] y) { c = Constant<value = float[3] {1, 2, 3}>()  y = Add(x, c) }",
    ),
    "ConstantOfShape": (
        17,
        "agraph (float[n,3] x) => (float[n,3] y) { s = Shape(x)  c = ConstantOfShape(s)  y = Add(x, c) }",
    ),
    "GlobalLpPool": (17, "agraph (float[1,3,4,4] x) => (float[1,3,1,1] y) { y = GlobalLpPool<p=2>(x) }"),
    "DequantizeLinear": (
        17,
        "agraph (int8[2,3] x) => (float[2,3] y) { s = Constant<value = float {0.5}>()  y = DequantizeLinear(x, s) }",
    ),
    "LayerNormalization": (
        17,
        "agraph (float[2,3] x) => (float[2,3] y) "
        "{ s = Constant<value = float[3] {1, 2, 3}>()  y = LayerNormalization<axis=-1>(x, s) }",
    ),
    "Loop": (
        17,
        "agraph (float[3] x) => (float[3] y) { m = Constant<value = int64 {4}>()  t = Constant<value = bool {1}>()  "
        "y = Loop<body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) { d = Identity(c)  e = Sin(a) }>"
        "(m, t, x) }",
    ),
    "LpPool": (18, "agraph (float[1,3,8,8] x) => (float[1,3,7,7] y) { y = LpPool<p=2, kernel_shape=[2, 2]>(x) }"),
    "MaxRoiPool": (
        17,
        "agraph (float[1,3,8,8] x, float[2,5] r) => (float[2,3,2,2] y) { y = MaxRoiPool<pooled_shape=[2, 2]>(x, r) }",
    ),
    "Multinomial": (17, "agraph (float[1,3] x) => (int32[1,2] y) { y = Multinomial<sample_size=2>(x) }"),
    "Optional": (17, "agraph (float[3] x) => (float[3] y) { o = Optional(x)  y = OptionalGetElement(o) }"),
    "NonZero": (17, "agraph (float[2,3] x) => (int64[2,k] y) { y = NonZero(x) }"),
    "QuantizeLinear": (
        17,
        "agraph (float[2,3] x) => (int8[2,3] y) { s = Constant<value = float {0.5}>()  "
        "z = Constant<value = int8 {0}>()  y = QuantizeLinear(x, s, z) }",
    ),
    "RandomNormal": (17, "agraph (float[3] x) => (float[3] y) { r = RandomNormal<shape=[3]>()  y = Add(x, r) }"),
    "RandomNormalLike": (17, "agraph (float[3] x) => (float[3] y) { y = RandomNormalLike(x) }"),
    "RandomUniform": (17, "agraph (float[3] x) => (float[3] y) { r = RandomUniform<shape=[3]>()  y = Add(x, r) }"),
    "RandomUniformLike": (17, "agraph (float[3] x) => (float[3] y) { y = RandomUniformLike(x) }"),
    "Shape": (17, "agraph (float[n,3] x) => (int64[2] y) { y = Shape(x) }"),
    "Size": (17, "agraph (float[n,3] x) => (int64 y) { y = Size(x) }"),
    "Range": (
        17,
        "agraph (float[n] x) => (float[n] y) { s = Shape(x)  i = Constant<value = int64 {0}>()  k = Gather(s, i)  "
        "j = Constant<value = int64 {1}>()  r = Range(i, k, j)  c = Cast<to=1>(r)  y = Add(x, c) }",
    ),
    "SequenceAt": (
        17,
        "agraph (float[3] x, float[3] z) => (float[3] y) "
        "{ s = SequenceConstruct(x, z)  i = Constant<value = int64 {1}>()  y = SequenceAt(s, i) }",
    ),
    "SequenceConstruct": (
        17,
        "agraph (float[3] x, float[3] z, int64 i) => (float[3] y) "
        "{ s = SequenceConstruct(x, z)  y = SequenceAt(s, i) }",
    ),
    "SequenceErase": (
        17,
        "agraph (float[3] x, float[3] z, int64 i) => (float[3] y) { s = SequenceConstruct(x, z)  "
        "t = SequenceErase(s, i)  j = Constant<value = int64 {0}>()  y = SequenceAt(t, j) }",
    ),
}
HEAD = """# Operators

What becomes of each operator of the ONNX standard, opset {oldest} to {newest}: in trt-helper {helper}, and in the ONNX
parser and the builder of TensorRT-RTX {rtx}. Measured {day} with onnx {onnx}, which has schemas up to opset
{schemas}. `benchmarks/operators.py` writes this page; `tests/onnx_model/test_operator_table.py` fails where trt-helper
says something else by now.

Each row is of one small model, mostly ONNX's own test of the operator, with what exporters write as constants made
constants (shapes, axes, scalars). So a row says what holds for that model: another one of the same operator may be
refused, or built.

- **opsets**: where the operator changed, and of which opset the model is.
- **judged**: computed in FP16 or FP32; a plan may pin it. **moves values**: in the precision of what it moves.
  **fixed**: left as it is, with why. **rewritten**: other operators are judged in its place. **folded**: it is computed
  once, before anything is judged. **refused**: with the message.
- **TensorRT-RTX**: "built": an engine was made of the typed model with nothing pinned, on a machine without a GPU; no
  kernel was run. What trt-helper refuses is given to TensorRT-RTX as it is. Where FP32 alone was built, it follows
  what was said about FP16.

"""


@dataclass(frozen=True)
class Example:
    """The model of one row."""

    operator: str
    name: str  # of ONNX's test, or `own`
    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]  # of the inputs
    values: Mapping[str, np.ndarray]  # of the inputs that are shapes

    @property
    def opset(self) -> int:
        return next(one.version for one in self.model.opset_import if one.domain in {"", "ai.onnx"})


# --------------------------------------------------------------------------------------------------- models


@lru_cache(maxsize=1)
def operators() -> tuple[str, ...]:
    """Every operator of the standard that an opset from `OLDEST` on has."""
    schemas = onnx.defs.get_all_schemas_with_history()
    return tuple(sorted({one.name for one in schemas if one.domain == "" and _in_use(one.name)}))


def _in_use(name: str) -> bool:
    return any(
        onnx.defs.has(name, max_inclusive_version=opset) and not _schema(name, opset).deprecated
        for opset in range(OLDEST, onnx.defs.onnx_opset_version() + 1)
    )


def _schema(name: str, opset: int) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(name, max_inclusive_version=opset)


@lru_cache(maxsize=1)
def examples() -> dict[str, Example]:
    """A model for every operator: the simplest that reads FP32."""
    best: dict[str, tuple[tuple[object, ...], Example]] = {}
    for place, case in enumerate(node_cases()):
        nodes = case.model.graph.node
        for operator in {node.op_type for node in nodes if not node.domain} - OWN.keys():
            feed = case.feed or {}
            types = {array.dtype.type for array in feed.values()}
            floats = np.float32 not in types, np.float64 not in types
            name = case.name.removeprefix("node/").replace("_", "")
            plain = name.startswith(operator.lower()), "default" in name or "example" in name
            rank = (len(nodes), case.feed is None, *floats, *(not one for one in plain), place)
            if operator not in best or rank < best[operator][0]:
                best[operator] = rank, _example(operator, case.name.removeprefix("node/"), case.model, feed)
    found = {operator: example for operator, (_, example) in best.items()}
    for operator, (opset, text) in OWN.items():
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        found[operator] = _example(operator, "own", model, {})
    return found


def _example(operator: str, name: str, model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Example:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.ir_version = max(copy.ir_version, 4)  # before that, every constant is an input too
    feed = _as_float32(copy, feed)
    _lower_opset(copy)
    _make_constants(copy, feed)
    inputs = {value.name: value.type.tensor_type for value in copy.graph.input}
    shapes = {key: tuple(dim.dim_value or 2 for dim in kind.shape.dim) for key, kind in inputs.items()}
    values = {key: array for key, array in feed.items() if key in inputs and array.dtype.kind in "iu"}
    return Example(operator, name, copy, shapes, values)


def _as_float32(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make FP32 of doubles: some operators are tested with nothing else."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in feed.items()}


def _lower_opset(model: onnx.ModelProto) -> None:
    """Make it a model of opset `NEWEST` if its nodes are valid there."""
    opset = next((one for one in model.opset_import if not one.domain), None)
    if opset is None or opset.version <= NEWEST:
        return
    own, opset.version = opset.version, NEWEST
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError):
        opset.version = own


def _make_constants(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> None:
    """Make initializers of the inputs after the first that are no tensors of floats, as exporters write them."""
    places = {(name, index): node.op_type for node in model.graph.node for index, name in enumerate(node.input)}
    for value in list(model.graph.input)[1:]:
        array = feed.get(value.name)
        shape = any(name == value.name and index in SHAPE_INPUTS.get(op, ()) for (name, index), op in places.items())
        if array is not None and (shape or array.dtype.kind in "iub" or array.ndim == 0):
            model.graph.input.remove(value)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))


# ------------------------------------------------------------------------------------------------ trt-helper


def helper_column(example: Example) -> str:
    """What trt-helper does with the operator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(example.model.SerializeToString())
        try:
            graph = load_graph(path)
        except ModelError as error:
            return f"refused: {anonymous(error.message, example)}"
    return _column(example.operator, graph)


def _column(operator: str, graph: Graph) -> str:
    layers = [layer for layer in graph.layers if layer.op == operator]
    if not layers:
        left = dict.fromkeys(layer.op for layer in graph.layers)
        own = {node.op_type for node in graph.source.ir_model.graph} | {"Identity", "Constant"}
        return "folded" if own.issuperset(left) else f"rewritten: {', '.join(left)}"
    layer = layers[0]
    node = graph.nodes[layer.name]
    if is_select(node):
        return "rewritten: the layers of its branches are judged one by one"
    if layer.role is Role.COMPUTE:
        return "judged"
    if layer.role is Role.MOVEMENT:
        return "moves values; compares them as stored" if picks(node) else "moves values"
    return f"fixed: {_why(node, graph.model.opset_imports.get('', 1))}"


def _why(node: ir.Node, opset: int) -> str:
    """Why a layer is never changed."""
    schema = _schema(node.op_type, opset)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    reasons = {
        "its body stays FP32": bool(subgraphs(node)),
        "no FP32 in it": not any(value.dtype is ir.DataType.FLOAT for value in values),
        "it reads bits as another type": node.op_type == "BitCast",
        "the type of its result is an attribute": "dtype" in node.attributes or node.op_type in TYPED_BY_ATTRIBUTE,
        "the standard has no FP16 for it": not any(map(_may_be_half, (*schema.inputs, *schema.outputs))),
        "the standard has no FP16 for its result": not all(map(_may_be_half, schema.outputs[:1])),
    }
    return next((reason for reason, holds in reasons.items() if holds), "only shapes are computed from it")


def _may_be_half(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
    return "tensor(float16)" in parameter.types


def anonymous(message: str, example: Example) -> str:
    """A message without the names that only this model has."""
    text = re.sub(r"/\S+/(?=model\.onnx)", "", message)
    text = re.sub(r"'[^']*'", lambda quoted: quoted[0] if quoted[0].strip("'") == example.operator else "…", text)
    text = re.sub(r"\s+", " ", text).replace("|", r"\|")
    return text if len(text) <= 200 else f"{text[:199]}…"


# ---------------------------------------------------------------------------------------------- TensorRT-RTX


def rtx_column(example: Example) -> str:
    """What TensorRT-RTX makes of the model."""
    with tempfile.TemporaryDirectory() as folder:
        source, typed = Path(folder) / "model.onnx", Path(folder) / "typed.onnx"
        source.write_bytes(example.model.SerializeToString())
        try:
            graph = load_graph(source)
        except ModelError:
            return _built(source, example) or "built"
        says = {}
        for key, plan in (("FP16", Plan()), ("FP32", graph.all_pinned())):
            made = render(graph, plan)
            state_conditions(made.model)
            try:
                write(made, typed)
            except TrtHelperError as error:
                return f"trt-helper: {anonymous(error.message, example)}"
            says[key] = _built(typed, example)
            if not says[key] or not graph.candidates:
                break
        if not says["FP16"]:
            return "built"
        return f"FP32 built; FP16: {says['FP16']}" if says.get("FP32") == "" else says["FP16"]


def _built(model: Path, example: Example) -> str:
    """Nothing if an engine was built, else what TensorRT-RTX said."""
    settings = BuildSettings(time_limit=TIME_LIMIT)
    for profile in _profiles(model, example):
        try:
            build(model, model.with_suffix(".trt"), profiles=[profile] if profile else [], settings=settings)
        except TrtHelperError as error:
            said = _who(error.message, model, example)
        else:
            return ""
    return said


def _profiles(model: Path, example: Example) -> Iterator[dict[str, tuple[tuple[int, ...], ...]]]:
    """A profile of sizes; then one with the values of the inputs, for those that TensorRT takes for shapes."""
    inputs = onnx.load(model, load_external_data=False).graph.input
    dynamic = [
        one.name for one in inputs if any(not dim.HasField("dim_value") for dim in one.type.tensor_type.shape.dim)
    ]
    sizes = {name: (example.shapes[name],) * 3 for name in dynamic}
    yield sizes
    values = {name: (tuple(array.ravel().tolist()),) * 3 for name, array in example.values.items()}
    if values:
        yield sizes | values


def _who(message: str, model: Path, example: Example) -> str:
    """Whose words they are, and the words."""
    product = rf"TensorRT-RTX {re.escape(version('tensorrt_rtx'))}"
    text = anonymous(re.sub(r"\s*\(phase '[^']*'\)", "", message), example)
    if re.match(rf"{product} could not build", text):
        return f"parsed, not built: {re.sub(rf'^{product} could not build [^:]*: ', '', text)}"
    if "crashed TensorRT-RTX" in text or "time limit" in text:
        return f"parsed, not built: {text}"
    said, end = forked(parser_words, [model.read_bytes()], TIME_LIMIT)
    words = said[0] if said else f"it ended with {end}"
    if words == "false" or "lugin" in words:  # the parser looks for a plugin where it has no operator of the name
        return "parser: no such operator"
    return f"parser: {anonymous(_plain(words), example)}"


def _plain(words: str) -> str:
    """The cause in the parser's words."""
    noise = ("Invalid Node", "cudaError 35")  # the name of the node, and that this machine has no GPU
    lines = [line for line in words.splitlines() if line.strip() and not any(word in line for word in noise)]
    return reason(lines[0]) if lines else words


# ------------------------------------------------------------------------------------------------------ page


def opsets(example: Example) -> str:
    """The opsets in which the operator changed, and the one that the model is of."""
    changed = sorted(
        {
            _schema(example.operator, opset).since_version
            for opset in range(OLDEST, onnx.defs.onnx_opset_version() + 1)
            if onnx.defs.has(example.operator, max_inclusive_version=opset)
        }
    )
    return f"{', '.join(map(str, changed))} ({example.opset})"


def rows(page: str) -> dict[str, tuple[str, str, str]]:
    """The table of a page: opsets, trt-helper and TensorRT-RTX by operator."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in {"operator", "---"}:
            found[cells[0]] = (cells[1], cells[2], cells[3])
    return found


def main() -> int:
    """Build a model of every operator, and write the page; with arguments write their rows again."""
    wanted = sys.argv[1:] or operators()
    lines = []
    for operator in wanted:
        one = examples()[operator]
        lines.append(f"| {operator} | {opsets(one)} | {helper_column(one)} | {rtx_column(one)} |")
        print(lines[-1], f"<- {one.name}", flush=True)
    if sys.argv[1:]:
        fresh = dict(zip(wanted, lines, strict=True))
        old = PAGE.read_text(encoding="utf-8").splitlines()
        new = [fresh.get(line.split("|")[1].strip(), line) if line.startswith("| ") else line for line in old]
        PAGE.write_text("\n".join(new) + "\n", encoding="utf-8")
        return 0
    rtx = version("tensorrt_rtx")
    head = HEAD.format(
        oldest=OLDEST,
        newest=NEWEST,
        helper=__version__,
        rtx=rtx,
        day=date.today().isoformat(),
        onnx=version("onnx"),
        schemas=onnx.defs.onnx_opset_version(),
    )
    table = ["| operator | opsets (model) | trt-helper | TensorRT-RTX " + rtx + " |", "|---|---|---|---|", *lines]
    PAGE.write_text(head + "\n".join(table) + "\n", encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
