"""A normalised graph goes in; what can be rewritten in it so that FP16 does less harm, for free, comes out.

A cure changes the graph and not the precision of a layer: a constant beyond FP16's range is brought into
it, and a norm that the exporter took to pieces becomes one operator again, which engines compute in FP32
inside whatever the type of its input. Whether a cure helps, and whether it is right, is for trials to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import version_converter

from trt_helper.errors import ConfigError, ModelError, first_line, nearest
from trt_helper.onnx_model.names import free_name, names_in
from trt_helper.values import Rewrite

HALF_MAX = 65504.0
SATURATED = 32768.0  # half of FP16's range: what is added to a mask cannot push it to infinity
OPSETS = {"LayerNormalization": 17, "RMSNormalization": 23}  # in which they appeared
CARRY = frozenset(("Reshape", "Expand", "Unsqueeze", "Squeeze", "Identity"))  # as a broadcast in many steps


def find(graph: ir.Graph, kinds: Iterable[str]) -> tuple[Rewrite, ...]:
    """All cures of these kinds that `graph` offers, in topological order."""
    found: list[Rewrite] = []
    if "constants" in kinds:
        values = graph.initializers.values()
        found += [Rewrite("constants", value.name or "") for value in values if value.uses() and _saturates(value)]
    if "norms" in kinds:
        found += [Rewrite("norms", norm.node.name or "", norm.op) for norm in _norms(graph)]
    return tuple(found)


def raise_opset(model: ir.Model, rewrites: Iterable[Rewrite]) -> None:
    """Convert `model`, before it is normalised, to the opset that the cures' operators need."""
    needed = max((OPSETS[rewrite.op] for rewrite in rewrites if rewrite.op in OPSETS), default=0)
    if model.opset_imports.get("", 1) >= needed:
        return
    try:
        version_converter.convert_version(model, needed, fallback=True)
    except Exception as error:  # onnx's converter raises what its C++ part throws
        raise ModelError(
            f"the model cannot be converted to opset {needed}: {first_line(error)}",
            fix="export it with that opset, or leave norms out of --cures",
        ) from error


def apply(model: ir.Model, rewrites: Sequence[Rewrite]) -> dict[str, str]:
    """Rewrite the normalised `model` in place; returns which layer answers to the name of each that is gone.

    Raises ConfigError for a cure that the model does not offer.
    """
    graph = model.graph
    offered = {(rewrite.kind, rewrite.name): rewrite for rewrite in find(graph, {rewrite.kind for rewrite in rewrites})}
    norms = (
        {norm.node.name: norm for norm in _norms(graph)} if any(rewrite.kind == "norms" for rewrite in rewrites) else {}
    )
    before = {node.name or "" for node in graph}
    successors: dict[str, str] = {}
    for rewrite in rewrites:
        if (rewrite.kind, rewrite.name) not in offered:
            near = nearest(rewrite.name, [name for kind, name in offered if kind == rewrite.kind])
            hint = f"did you mean {near!r}?" if near else "run `trt-helper locate --cures ...` again on this model"
            raise ConfigError(f"the model offers no cure of {rewrite.name!r} by {rewrite.kind}", fix=hint)
        if rewrite.kind == "constants":
            _saturate(graph.initializers[rewrite.name])
        else:
            norm = norms[rewrite.name]
            _fuse(graph, norm)
            successors |= {node.name or "": rewrite.name for node in norm.members}
    RemoveUnusedNodesPass()(model)
    alive = {node.name or "" for node in graph}
    return {name: successor for name, successor in successors.items() if name in before - alive}


def _saturates(value: ir.Value) -> bool:
    if value.dtype is not ir.DataType.FLOAT or value.const_value is None:
        return False
    array = value.const_value.numpy()
    return bool((np.isfinite(array) & (np.abs(array) > HALF_MAX)).any())


def _saturate(value: ir.Value) -> None:
    array = value.const_value.numpy()  # type: ignore[union-attr]  # `_saturates` has looked
    near = np.where(np.isfinite(array), np.clip(array, -SATURATED, SATURATED), array)
    value.const_value = ir.Tensor(near.astype(np.float32), name=value.name)


# ------------------------------------------------------------------------------------------------ norms

# What a tensor is to the x that it comes from. `m` is the mean over the last axis, `v` the variance and `q` the mean
# of the squares; `w` any weights, and a number that constant.
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
LARGEST_EPSILON = 0.01


@dataclass(frozen=True, eq=False, slots=True)
class _Norm:
    """A decomposed norm: `node` computes what one `op` with these weights and this epsilon would of `x`."""

    op: str
    x: ir.Value
    node: ir.Node
    members: tuple[ir.Node, ...]  # the layers that it is made of
    weights: ir.Value | None
    epsilon: float


@dataclass(eq=False)
class _Reading:
    """What is known of the tensors that come from one `x` of `n` features."""

    x: ir.Value
    n: int
    tags: dict[ir.Value, str] = field(default_factory=dict)
    members: list[ir.Node] = field(default_factory=list)
    weights: ir.Value | None = None
    epsilon: float = 0.0

    def tag(self, node: ir.Node) -> str:
        """What the node's output is, or nothing."""
        known = [self.tags.get(value) for value in node.inputs if value is not None]
        if node.op_type in CARRY:
            return known[0] or ""
        if node.op_type in ("ReduceMean", "ReduceSum"):
            kind = node.op_type.removeprefix("Reduce").lower()
            return RULES.get((kind, known[0]), "") if _over_last_axis(node) else ""
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
        """The words under which a constant may appear in a rule."""
        if value is None or value.const_value is None:
            return []
        array = value.const_value.numpy()
        if array.size != 1:
            return ["w"] if array.size == self.n and array.shape[-1] == self.n else []
        number = float(array.reshape(-1)[0])
        words: list[object] = [number]
        if np.isclose(number * self.n, 1, rtol=1e-5):
            words.append("1/n")
        if number == self.n:
            words.append("n")
        return [*words, "eps"] if 0 < number <= LARGEST_EPSILON else words

    def _remember(self, node: ir.Node, *words: object) -> None:
        for word in words:
            constant = next((v for v in node.inputs if v is not None and v.const_value is not None), None)
            if constant is not None and constant.const_value is not None:
                if word == "eps":
                    self.epsilon = float(constant.const_value.numpy().reshape(-1)[0])
                elif word == "w":
                    self.weights = constant


def _norms(graph: ir.Graph) -> list[_Norm]:
    """Every decomposed norm of `graph` over the last axis, in topological order."""
    place = {node: index for index, node in enumerate(graph)}
    starts = dict.fromkeys(
        node.inputs[0] for node in graph if node.op_type in ("ReduceMean", "ReduceSum") and _over_last_axis(node)
    )
    squares = {v.producer(): v for v in starts if v is not None and v.producer() is not None}
    starts |= dict.fromkeys(
        producer.inputs[0] for producer in squares if producer is not None and producer.op_type in ("Mul", "Pow")
    )
    found: dict[ir.Node, _Norm] = {}
    for norm in (norm for x in starts if x is not None and (norm := _norm_of(x, place))):
        if norm.op == "LayerNormalization" or norm.node not in found:  # whose x - m is the x of an RMSNormalization
            found[norm.node] = norm
    return sorted(found.values(), key=lambda norm: place[norm.node])


def _norm_of(x: ir.Value, place: Mapping[ir.Node, int]) -> _Norm | None:
    """The norm of `x`, if that is what its readers compute."""
    if x.dtype is not ir.DataType.FLOAT or x.shape is None or not len(x.shape) or not isinstance(x.shape[-1], int):
        return None
    reading = _Reading(x, x.shape[-1], {x: "x"})
    waiting = set(x.consumers())
    while waiting:
        node = min(waiting, key=lambda one: place.get(one, len(place)))
        waiting.remove(node)
        tag = reading.tag(node) if node in place else ""
        if not tag:
            continue
        reading.members.append(node)
        if tag in OPSETS:
            if _may_be_equal(node.outputs[0].shape, x.shape):
                members = tuple(reading.members)
                return _Norm(tag, x, node, members, reading.weights, reading.epsilon)
            return None
        reading.tags[node.outputs[0]] = tag
        waiting.update(node.outputs[0].consumers())
    return None


def _may_be_equal(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Whether two shapes agree where both are known; symbols have other names behind a Reshape."""
    if one is None or other is None or len(one) != len(other):
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, int) and isinstance(b, int)]
    return all(a == b for a, b in pairs) and one[-1] == other[-1]


def _over_last_axis(node: ir.Node) -> bool:
    """Whether a reduction is over the last axis alone."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None:
        return False
    given = node.attributes.get("axes")
    axes: list[int] = list(given.as_ints()) if given is not None else []
    if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = [int(axis) for axis in node.inputs[1].const_value.numpy().reshape(-1)]
    return axes in ([-1], [len(value.shape) - 1])


def _fuse(graph: ir.Graph, norm: _Norm) -> None:
    """Put one operator in the place of the norm's last layer, under its name."""
    n = norm.x.shape[-1] if norm.x.shape is not None else 0
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
    new = ir.Node(
        "", norm.op, [norm.x, scale], attributes, name=norm.node.name, metadata_props=norm.node.metadata_props
    )
    ir.convenience.replace_nodes_and_values(graph, norm.node, [norm.node], [new], [old], [new.outputs[0]])
