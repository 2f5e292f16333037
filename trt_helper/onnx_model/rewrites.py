"""Rewrites of a normalised graph that reduce the error of FP16 at no cost in speed.

A rewrite changes the graph and not the precision of a layer. There are four kinds:

- constants: a constant beyond the range of FP16 is clipped into that range. An epsilon that FP16 makes 0 is raised to
  the smallest number of FP16, or to the smallest one that has all its bits.
- norms: a LayerNormalization or RMSNormalization that the exporter decomposed becomes one operator again. Engines
  compute it in FP32 internally, whatever the type of its input.
- logs: a logarithm of what underflows is computed without it: log(softmax(x)) as x - max - log(sum(exp(x - max))),
  log(sigmoid(x)) as -softplus(-x). Kernels take them as they stand, so a LogSoftmax underflows in FP32, too.
- rows: a product with one row or column is computed with two, of which one is kept. TensorRT-RTX 1.7.1 then takes
  tensor cores, which multiply exactly, in place of a kernel that multiplies in half (seen with Concat, Pad, Expand).

Whether a rewrite helps, and whether it keeps the outputs right, is decided by trials. The command line and the YAML
file call rewrites cures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from trt_helper.errors import ConfigError, nearest
from trt_helper.onnx_model.names import free_name, names_in
from trt_helper.onnx_model.normalise import remove_unused
from trt_helper.onnx_model.opsets import raise_to
from trt_helper.values import Rewrite

HALF_MAX = 65504.0
SATURATED = 32768.0  # half of FP16's range: adding activations to a mask of this size does not overflow
EPSILONS = ("5.961e-08", "6.104e-05")  # FP16's smallest number, and its smallest one with all bits, rounded up
LOST = 2.0**-25  # and all that is less rounds to 0 in FP16
BOUNDS = frozenset(("Add", "Clip", "Max", "Sum", "Where"))  # what keeps a number away from 0 with an epsilon
OPSETS = {"LayerNormalization": 17, "RMSNormalization": 23}  # the opset that introduced the operator
SOFTMAX_OF_ONE_AXIS = 13  # the opset since which Softmax has one axis, and not all from `axis` on
SHORT = 4  # terms of a product that kernels add up in half, however many rows it has
MATRIX = 2  # axes of a matrix
MAXIMUM_OF_INPUT = 18  # the opset since which ReduceMax has its axes as an input
CARRY = frozenset(("Reshape", "Expand", "Unsqueeze", "Squeeze", "Identity"))  # exported for a broadcast


def find(graph: ir.Graph, kinds: Iterable[str]) -> tuple[Rewrite, ...]:
    """All rewrites of these kinds that `graph` offers: constants first, then norms in topological order.

    Args:
        graph: A normalised graph.
        kinds: Of `values.REWRITE_KINDS`. All but "pins" and "bf16" are rewrites of the graph.
    """
    found: list[Rewrite] = []
    if "constants" in kinds:
        values = graph.initializers.values()
        found += [Rewrite("constants", value.name or "") for value in values if value.uses() and _saturates(value)]
        found += [Rewrite("constants", value.name or "", EPSILONS[0]) for value in values if _is_lost_epsilon(value)]
    if "norms" in kinds:
        found += [Rewrite("norms", norm.node.name or "", norm.op) for norm in _norms(graph)]
    if "logs" in kinds:
        found += [Rewrite("logs", node.name or "") for node in graph if _is_logarithm(node, graph)]
    if "rows" in kinds:
        found += [Rewrite("rows", node.name or "") for node in graph if _single(node)]
    return tuple(found)


def raised_further(rewrites: Iterable[Rewrite]) -> tuple[Rewrite, ...]:
    """The same rewrites with every epsilon raised to the smallest FP16 number that has all bits."""
    return tuple(replace(rewrite, op=EPSILONS[1]) if rewrite.op == EPSILONS[0] else rewrite for rewrite in rewrites)


def raise_opset(model: ir.Model, rewrites: Iterable[Rewrite]) -> None:
    """Convert `model`, in place and before it is normalised, to the opset that the operators of `rewrites` need.

    Raises:
        ModelError: onnx cannot convert the model to that opset.
    """
    raise_to(
        model, max((OPSETS[rewrite.op] for rewrite in rewrites if rewrite.op in OPSETS), default=0), "--cures norms"
    )


def apply(model: ir.Model, rewrites: Sequence[Rewrite]) -> dict[str, str]:
    """Apply `rewrites` to the normalised `model`, in place.

    Returns:
        The successor of each layer that a rewrite removed, by name.

    Raises:
        ConfigError: The model does not offer one of the rewrites.
    """
    graph = model.graph
    offered = {(rewrite.kind, rewrite.name): rewrite for rewrite in find(graph, {rewrite.kind for rewrite in rewrites})}
    norms = (
        {norm.node.name: norm for norm in _norms(graph)} if any(rewrite.kind == "norms" for rewrite in rewrites) else {}
    )
    before = {node.name or "" for node in graph}
    successors: dict[str, str] = {}
    for rewrite in rewrites:
        if not _is_offered(rewrite, offered.get((rewrite.kind, rewrite.name))):
            near = nearest(rewrite.name, [name for kind, name in offered if kind == rewrite.kind])
            hint = f"did you mean {near!r}?" if near else "run `trt-helper locate --cures ...` again on this model"
            raise ConfigError(f"the model offers no cure of {rewrite.name!r} by {rewrite.kind}", fix=hint)
        if rewrite.kind == "constants":
            _bring_into_range(graph.initializers[rewrite.name], rewrite.op)
        elif rewrite.kind == "logs":
            node = next(node for node in graph if node.name == rewrite.name)
            if node.op_type == "Log" and (sigmoid := _given(node).producer()):
                successors[sigmoid.name or ""] = rewrite.name
            _without_underflow(graph, node)
        elif rewrite.kind == "rows":
            _doubled(graph, next(node for node in graph if node.name == rewrite.name))
        else:
            norm = norms[rewrite.name]
            _fuse(graph, norm)
            successors |= {node.name or "": rewrite.name for node in norm.members}
    remove_unused(model)
    alive = {node.name or "" for node in graph}
    return {name: successor for name, successor in successors.items() if name in before - alive}


def _saturates(value: ir.Value) -> bool:
    """Whether an initializer has finite values beyond the range of FP16."""
    if value.dtype is not ir.DataType.FLOAT or value.const_value is None:
        return False
    array = value.const_value.numpy()
    return bool((np.isfinite(array) & (np.abs(array) > HALF_MAX)).any())


def _is_lost_epsilon(value: ir.Value) -> bool:
    """Whether an initializer holds positive numbers that FP16 makes 0, and only keeps other numbers away from 0."""
    if value.dtype is not ir.DataType.FLOAT or value.const_value is None or value.is_graph_output():
        return False
    array, uses = value.const_value.numpy(), value.uses()
    bounds = bool(uses) and all(node.op_type in BOUNDS for node, _ in uses)
    return bounds and array.size > 0 and bool(((array > 0) & (array <= LOST)).all())


def _is_offered(rewrite: Rewrite, offered: Rewrite | None) -> bool:
    if offered is None:
        return False
    return rewrite.kind != "constants" or rewrite.op in (EPSILONS if offered.op else ("",))


def _bring_into_range(value: ir.Value, epsilon: str) -> None:
    """Raise an initializer to `epsilon`; if that is empty, clip it."""
    array = value.const_value.numpy()  # type: ignore[union-attr]  # `find` checked it
    clipped = np.where(np.isfinite(array), np.clip(array, -SATURATED, SATURATED), array)
    if epsilon:
        clipped = np.full_like(array, float(epsilon))
    value.const_value = ir.Tensor(clipped.astype(np.float32), name=value.name)


# ------------------------------------------------------------------------------------------------ norms

# The rules that recognise a decomposed norm: (operator, tags of its inputs) -> tag of its output. A tag is the formula
# of a tensor in terms of x, the input of the norm: m is the mean of x over one axis, v the variance, q the mean of
# the squares, n the number of features, d a standard deviation, e epsilon. "w" is any weights of n elements, and a
# number is a constant of that value. The last tags are the operators themselves.
RULES: Mapping[tuple[object, ...], str] = {
    ("mean", "x"): "m",
    ("sum", "x"): "nm",
    ("Sub", "x", "m"): "x-m",
    ("Mul", "x", "x"): "xx",
    ("Pow", "x", 2.0): "xx",
    ("mean", "xx"): "q",
    ("sum", "xx"): "nq",
    ("Mul", "m", "m"): "mm",
    ("Pow", "m", 2.0): "mm",
    ("Sub", "q", "mm"): "v",
    ("Max", "v", 0.0): "v",
    ("Relu", "v"): "v",
    ("Mul", "x-m", "x-m"): "cc",
    ("Pow", "x-m", 2.0): "cc",
    ("mean", "cc"): "v",
    ("sum", "cc"): "nv",
    **{("Mul", f"n{t}", "1/n"): t for t in "mqv"},
    **{("Div", f"n{t}", "n"): t for t in "mqv"},
    **{("Add", t, "eps"): f"{t}+e" for t in "vq"},
    **{("Sqrt", f"{t}+e"): f"d{t}" for t in "vq"},
    **{("Reciprocal", f"d{t}"): f"1/d{t}" for t in "vq"},
    **{("Div", 1.0, f"d{t}"): f"1/d{t}" for t in "vq"},
    **{("Pow", f"{t}+e", -0.5): f"1/d{t}" for t in "vq"},
    **{("Mul", f"1/d{t}", "w"): f"w/d{t}" for t in "vq"},
    ("Div", "x-m", "dv"): "LayerNormalization",
    ("Mul", "x-m", "1/dv"): "LayerNormalization",
    ("Mul", "x-m", "w/dv"): "LayerNormalization",
    ("Div", "x", "dq"): "RMSNormalization",
    ("Mul", "x", "1/dq"): "RMSNormalization",
    ("Mul", "x", "w/dq"): "RMSNormalization",
}
LARGEST_EPSILON = 0.01  # a larger constant is not taken for an epsilon


@dataclass(frozen=True, eq=False, slots=True)
class _Norm:
    """A decomposed norm: the output of `node` equals `op` of `x` with these weights and this epsilon."""

    op: str
    x: ir.Value
    node: ir.Node  # the last of `members`
    members: tuple[ir.Node, ...]  # the layers that it was decomposed into
    weights: ir.Value | None
    epsilon: float
    axis: int  # that is normalised, such as 1 for the channels of an image


@dataclass(eq=False)
class _Matcher:
    """Matches the tensors that are computed from one `x` of `n` features along `axis` with `RULES`."""

    x: ir.Value
    n: int
    axis: int
    rank: int
    tags: dict[ir.Value, str] = field(default_factory=dict)  # of the tensors that match
    members: list[ir.Node] = field(default_factory=list)
    weights: ir.Value | None = None
    epsilon: float = 0.0

    def tag(self, node: ir.Node) -> str:
        """The tag of the node's output, empty if no rule applies."""
        known = [self.tags.get(value) for value in node.inputs if value is not None]
        if node.op_type in CARRY:
            return known[0] or ""
        if node.op_type in ("ReduceMean", "ReduceSum"):
            kind = node.op_type.removeprefix("Reduce").lower()
            return RULES.get((kind, known[0]), "") if _reduced_axis(node) == self.axis else ""
        words = [[tag] if tag else self._constant(value) for tag, value in zip(known, node.inputs, strict=False)]
        if len(words) == 1:
            return RULES.get((node.op_type, words[0][0]), "")
        for a in words[0]:
            for b in words[1] if len(words) > 1 else []:
                found = RULES.get((node.op_type, a, b)) or (
                    RULES.get((node.op_type, b, a), "") if node.op_type in ("Add", "Mul", "Max") else ""
                )
                if found:
                    self._remember(node, a, b)
                    return found
        return ""

    def _constant(self, value: ir.Value | None) -> list[object]:
        """The words that may stand for this constant in a rule."""
        if value is None or value.const_value is None:
            return []
        array = value.const_value.numpy()
        if array.size != 1:
            place = array.ndim - (self.rank - self.axis)  # where the axis is after broadcasting
            return ["w"] if array.size == self.n and place >= 0 and array.shape[place] == self.n else []
        number = float(array.reshape(-1)[0])
        words: list[object] = [number]
        if np.isclose(number * self.n, 1, rtol=1e-5):
            words.append("1/n")
        if number == self.n:
            words.append("n")
        return [*words, "eps"] if 0 < number <= LARGEST_EPSILON else words

    def _remember(self, node: ir.Node, *words: object) -> None:
        """Remember the epsilon or the weights that a rule matched."""
        for word in words:
            constant = next((v for v in node.inputs if v is not None and v.const_value is not None), None)
            if constant is not None and constant.const_value is not None:
                if word == "eps":
                    self.epsilon = float(constant.const_value.numpy().reshape(-1)[0])
                elif word == "w":
                    self.weights = constant


def _norms(graph: ir.Graph) -> list[_Norm]:
    """Every decomposed norm of `graph` over one axis, in topological order.

    A norm starts with a reduction, so `x` is the input of one, or the tensor that is squared for one.
    """
    order = {node: index for index, node in enumerate(graph)}
    reductions = [node for node in graph if node.op_type in ("ReduceMean", "ReduceSum")]
    axes = dict.fromkeys((node.inputs[0], axis) for node in reductions if (axis := _reduced_axis(node)) is not None)
    starts = dict(axes)
    for x, axis in axes:
        producer = x.producer() if x is not None else None
        if producer is not None and producer.op_type in ("Mul", "Pow"):
            starts[producer.inputs[0], axis] = None
    found: dict[ir.Node, _Norm] = {}
    for norm in (norm for x, axis in starts if x is not None and (norm := _norm_of(x, axis, order))):
        # The x - m of a LayerNormalization also matches as the x of an RMSNormalization that ends in the same node.
        if norm.op == "LayerNormalization" or norm.node not in found:
            found[norm.node] = norm
    return sorted(found.values(), key=lambda norm: order[norm.node])


def _norm_of(x: ir.Value, axis: int, order: Mapping[ir.Node, int]) -> _Norm | None:
    """The norm of `x` over an axis, if the consumers of `x` compute one."""
    if x.dtype is not ir.DataType.FLOAT or x.shape is None or axis >= len(x.shape):
        return None
    size = x.shape[axis]
    if not isinstance(size, int):
        return None
    matcher = _Matcher(x, size, axis, len(x.shape), {x: "x"})
    waiting = set(x.consumers())
    while waiting:
        node = min(waiting, key=lambda one: order.get(one, len(order)))
        waiting.remove(node)
        tag = matcher.tag(node) if node in order else ""
        if not tag:
            continue
        matcher.members.append(node)
        if tag in OPSETS:
            if _may_be_equal(node.outputs[0].shape, x.shape, axis):
                members = tuple(matcher.members)
                return _Norm(tag, x, node, members, matcher.weights, matcher.epsilon, axis)
            return None
        matcher.tags[node.outputs[0]] = tag
        waiting.update(node.outputs[0].consumers())
    return None


def _may_be_equal(one: ir.Shape | None, other: ir.Shape | None, axis: int) -> bool:
    """Whether two shapes agree in their known sizes. Symbols are not compared: a Reshape gives them other names."""
    if one is None or other is None or len(one) != len(other):
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, int) and isinstance(b, int)]
    return all(a == b for a, b in pairs) and one[axis] == other[axis]


def _reduced_axis(node: ir.Node) -> int | None:
    """The axis of a reduction over one axis."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None:
        return None
    given = node.attributes.get("axes")
    axes: list[int] = list(given.as_ints()) if given is not None else []
    if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = [int(axis) for axis in node.inputs[1].const_value.numpy().reshape(-1)]
    return axes[0] % len(value.shape) if len(axes) == 1 and len(value.shape) else None


def _fuse(graph: ir.Graph, norm: _Norm) -> None:
    """Replace the last layer of the norm with one operator of the same name. The other layers lose their consumer."""
    rank = len(norm.x.shape or ())
    n = norm.x.shape[norm.axis] if norm.x.shape is not None else 0
    given = norm.weights.const_value if norm.weights is not None else None
    array = given.numpy().reshape(-1) if given is not None else np.ones(int(n), np.float32)  # type: ignore[arg-type]
    scale = ir.Value(
        name=free_name(f"{norm.node.name}_scale", names_in(graph)),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array.astype(np.float32)),
    )
    graph.register_initializer(scale)
    old = norm.node.outputs[0]
    attributes = [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", norm.epsilon), ir.AttrInt64("stash_type", 1)]
    if norm.axis == rank - 1:
        new = ir.Node(
            "", norm.op, [norm.x, scale], attributes, name=norm.node.name, metadata_props=norm.node.metadata_props
        )
        ir.convenience.replace_nodes_and_values(graph, norm.node, [norm.node], [new], [old], [new.outputs[0]])
        return
    there = [*(axis for axis in range(rank) if axis != norm.axis), norm.axis]  # the axis becomes the last one
    back = [there.index(axis) for axis in range(rank)]
    made, sizes = _Layers(graph, norm.node), list(norm.x.shape or ())
    moved = [sizes[axis] for axis in there]
    x = made.add("Transpose", [norm.x], moved, [ir.AttrInt64s("perm", there)])
    normed = made.add(norm.op, [x, scale], moved, attributes, named=True)
    last = made.add("Transpose", [normed], sizes, [ir.AttrInt64s("perm", back)])
    ir.convenience.replace_nodes_and_values(graph, norm.node, [norm.node], made.nodes, [old], [last])


# ----------------------------------------------------------------------------------------------- logs


def _is_logarithm(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether this node is the logarithm of a softmax or of a sigmoid, in FP32."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.dtype is not ir.DataType.FLOAT or not value.shape or not node.outputs[0].shape:
        return False
    if node.op_type == "LogSoftmax":
        return graph.opset_imports.get("", 1) >= SOFTMAX_OF_ONE_AXIS
    inner = value.producer()
    return node.op_type == "Log" and inner is not None and inner.op_type == "Sigmoid"


def _without_underflow(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a logarithm by layers that do not underflow; the last of them has its name."""
    made = _Layers(graph, node)
    value = _given(node)
    sigmoid = value.producer()
    if sigmoid is not None and node.op_type == "Log":
        x = _given(sigmoid)
        last = made.add("Neg", [made.add("Softplus", [made.add("Neg", [x])])], named=True)
    else:
        axis = node.attributes.get_int("axis", -1) % len(value.shape or ())
        reduced = [1 if index == axis else size for index, size in enumerate(value.shape or ())]
        shifted = made.add("Sub", [value, made.reduce("ReduceMax", value, axis, reduced)])
        total = made.reduce("ReduceSum", made.add("Exp", [shifted]), axis, reduced)
        last = made.add("Sub", [shifted, made.add("Log", [total], reduced)], named=True)
    old = node.outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], made.nodes, [old], [last])


def _given(node: ir.Node) -> ir.Value:
    """The first input of a node, which `_is_logarithm` has seen."""
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name} has no input")
    return value


class _Layers:
    """Layers that take the place of `node`, of its shape where no other is given."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._node, self._names = graph, node, names_in(graph)

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int | ir.SymbolicDim] | None = None,
        attributes: Sequence[ir.Attr] = (),
        *,
        named: bool = False,
    ) -> ir.Value:
        """Add a layer; the one that is `named` is called as the layer that all replace."""
        name = self._node.name if named else free_name(f"{self._node.name}_{op}", self._names)
        new = ir.Node("", op, inputs, attributes, name=name, metadata_props=self._node.metadata_props)
        output = new.outputs[0]
        output.name = free_name(f"{name}_output", self._names)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(shape) if shape is not None else self._node.outputs[0].shape
        self.nodes.append(new)
        return output

    def reduce(self, op: str, value: ir.Value, axis: int, shape: Sequence[int | ir.SymbolicDim]) -> ir.Value:
        """Add a reduction over one axis, which is kept; a sum has its axes as an input since opset 13, a maximum 18."""
        keep = ir.AttrInt64("keepdims", 1)
        if self._graph.opset_imports.get("", 1) < MAXIMUM_OF_INPUT and op == "ReduceMax":
            return self.add(op, [value], shape, [ir.AttrInt64s("axes", [axis]), keep])
        return self.add(op, [value, self.integer("axes", axis)], shape, [keep])

    def integer(self, what: str, value: int) -> ir.Value:
        """Add an initializer of one integer."""
        made = ir.Value(
            name=free_name(f"{self._node.name}_{what}", self._names),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([1]),
            const_value=ir.Tensor(np.array([value], np.int64)),
        )
        self._graph.register_initializer(made)
        return made


# ----------------------------------------------------------------------------------------------- rows


def _single(node: ir.Node) -> tuple[int, int] | None:
    """Which input of a product in FP32 has one row or one column, and along which axis; None for any other layer.

    A short product, whose sums are in half with any number of rows, is none.
    """
    if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None or node.inputs[1] is None:
        return None
    shapes = [list(value.shape) if value is not None and value.shape is not None else [] for value in node.inputs[:2]]
    if node.inputs[0].dtype is not ir.DataType.FLOAT or any(len(shape) < MATRIX for shape in shapes):
        return None
    turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    row, column = (-1 if turned[0] else -2), (-2 if turned[1] else -1)
    terms = shapes[0][-2 if turned[0] else -1]
    known = all(isinstance(size, int) for shape in shapes for size in shape)
    if not known or (isinstance(terms, int) and terms <= SHORT):
        return None
    if shapes[0][row] == 1 and (shapes[0][:-2] == shapes[1][:-2] or all(size == 1 for size in shapes[0][:-2])):
        return 0, row
    return (1, column) if shapes[1][column] == 1 else None


def _doubled(graph: ir.Graph, node: ir.Node) -> None:
    """Compute a product with two rows or columns, and keep the first of them."""
    found, out = _single(node), node.outputs[0]
    if found is None or out.shape is None:
        raise ValueError(f"{node.name} has no single row or column")
    index, axis = found
    made = _Layers(graph, node)
    inputs = list(node.inputs)
    value = inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    along = (-2, -1)[index]  # the axis of the result
    inputs[index] = made.add(
        "Concat", [value, value], _with_two(value, axis), [ir.AttrInt64("axis", _place(value, axis))]
    )
    attributes = list(node.attributes.values())
    both = made.add(node.op_type, inputs, _with_two(out, along), attributes, named=True)
    ends = (made.integer("starts", 0), made.integer("ends", 1), made.integer("axes", _place(out, along)))
    first = made.add("Slice", [both, *ends])
    ir.convenience.replace_nodes_and_values(graph, node, [node], made.nodes, [out], [first])


def _with_two(value: ir.Value, axis: int) -> list[int | ir.SymbolicDim]:
    shape = list(value.shape or ())
    shape[axis] = 2
    return shape


def _place(value: ir.Value, axis: int) -> int:
    """A negative axis counted from the first one."""
    return axis + len(value.shape or ())
