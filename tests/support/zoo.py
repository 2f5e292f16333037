"""What the zoo is built from: a graph writer, benign stretches, hazards, and cases made of them.

A hazard is some layers between two tensors of (1, length, WIDTH) values around 1. It has its own names,
`hazard/layer`, and says which of them are its smallest sets of pins. A case puts one or more hazards between a
stretch of convolutions and one of products, all of which half precision does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
Feed = dict[str, Array]
Generate = Callable[[np.random.Generator], Array]

WIDTH, LENGTH = 16, 12
OPSET = 17


class Net:
    """Writes one graph. `net("Add", a, b)` adds a node and returns its output's name.

    Arrays become weights, floats scalars, ints and lists of ints int64 vectors. The first word is the
    operator, `name` the node's name inside the current scope.
    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        before, self._scope = self._scope, f"{name}/"
        yield
        self._scope = before

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def __call__(self, op: str, *read: object, name: str = "", outputs: int = 1, **attributes: object) -> str:
        return self.many(op, *read, name=name, outputs=outputs, **attributes)[0]

    def many(self, op: str, *read: object, name: str = "", outputs: int = 1, **attributes: object) -> list[str]:
        layer = f"{self._scope}{name or f'{op.lower()}_{len(self.nodes)}'}"
        written = [layer + (f":{index}" if index else "") for index in range(outputs)]
        self.nodes.append(helper.make_node(op, [self._read(r) for r in read], written, name=layer, **attributes))
        return written

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.random.standard_normal(shape)).astype(np.float32)

    def model(self, name: str, outputs: Sequence[str], shape: Sequence[int | str]) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output in outputs]
        graph = helper.make_graph(self.nodes, name, self.inputs, results, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)

    def _read(self, read: object) -> str:
        if isinstance(read, str):
            return read
        if isinstance(read, int):
            read = [read]
        array = np.asarray(read, np.int64 if isinstance(read, list) else np.float32)
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name


# ------------------------------------------------------------------------------------- benign stretches


def convolutions(net: Net, x: str, *, blocks: int = 2) -> str:
    """(1, WIDTH, length) to the same, by residual blocks; every value stays around 1."""
    scale = (3 * WIDTH) ** -0.5
    for _ in range(blocks):
        inner = net("Relu", net("Conv", x, net.normal(WIDTH, WIDTH, 3, scale=scale), net.normal(WIDTH), pads=[1, 1]))
        inner = net("Conv", inner, net.normal(WIDTH, WIDTH, 3, scale=scale), pads=[1, 1])
        x = net("Mul", net("Add", x, inner), 0.7)
    return x


def products(net: Net, h: str, *, blocks: int = 3) -> str:
    """(1, length, WIDTH) to the same, by residual pairs of products; every value stays around 1."""
    scale = WIDTH**-0.5
    for index in range(blocks):
        inner = net("Add", net("MatMul", h, net.normal(WIDTH, WIDTH, scale=scale)), net.normal(WIDTH, scale=0.3))
        inner = net(("Relu", "Tanh", "Sigmoid")[index % 3], inner)
        inner = net("MatMul", inner, net.normal(WIDTH, WIDTH, scale=scale))
        h = net("Mul", net("Add", h, inner), 0.8)
    return h


def attention(net: Net, h: str) -> str:
    """One head with residual, scores around 1."""
    q, k, v = (net("MatMul", h, net.normal(WIDTH, WIDTH, scale=WIDTH**-0.5)) for _ in range(3))
    scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])), WIDTH**-0.5)
    return net("Add", h, net("MatMul", net("Softmax", scores, axis=-1), v))


def norm(net: Net, h: str, name: str = "") -> str:
    """Mean 0 and variance 1 over the last axis, by one layer."""
    return net("LayerNormalization", h, np.ones(WIDTH), np.zeros(WIDTH), name=name, axis=-1)


# ------------------------------------------------------------------------------------ hazards and cases


@dataclass(frozen=True, eq=False)
class Hazard:
    """`build(net, h)` returns the hazard's result. `smallest_sets` are all smallest sets of layers to pin."""

    name: str
    build: Callable[..., str]
    smallest_sets: tuple[frozenset[str], ...]
    inputs: Mapping[str, tuple[Sequence[int | str], Generate]]
    why: str

    @property
    def k(self) -> int:
        return len(self.smallest_sets[0])

    def add(self, net: Net, h: str) -> str:
        inputs = [net.input(name, shape) for name, (shape, _) in self.inputs.items()]
        with net.scope(self.name):
            return self.build(net, h, *inputs)


HAZARDS: dict[str, Hazard] = {}


def hazard(
    *smallest_sets: str, why: str, **inputs: tuple[Sequence[int | str], Generate]
) -> Callable[..., Callable[..., str]]:
    """Register a hazard under the function's name. Each set is a line of layer names without their scope."""

    def register(build: Callable[..., str]) -> Callable[..., str]:
        name = build.__name__
        sets = tuple(frozenset(f"{name}/{layer}" for layer in names.split()) for names in smallest_sets or ("",))
        HAZARDS[name] = Hazard(name, build, sets, inputs, why)
        return build

    return register


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its samples by seed, and what is known of its smallest plans.

    `hazards` are disjoint, and what each needs does not depend on the others: the smallest plans are all
    combinations of one set for each. Without hazards nothing has to be pinned.
    """

    name: str
    make: Callable[[], onnx.ModelProto]
    samples: Callable[[int], list[Feed]]
    hazards: tuple[Hazard, ...]
    why: str
    atol: float = 0.05

    @property
    def culprits(self) -> list[frozenset[str]]:
        """The equally small alternatives, one or more."""
        return [frozenset().union(*sets) for sets in product(*(hazard.smallest_sets for hazard in self.hazards))]

    @property
    def k(self) -> int:
        return sum(hazard.k for hazard in self.hazards)

    def held_out(self) -> list[Feed]:
        return [feed for seed in (1, 2, 3) for feed in self.samples(seed)[:3]]


CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Sizes:
    """Batch and length of each sample, and how the graph calls them where they differ."""

    of: tuple[tuple[int, int], ...] = ((1, LENGTH), (1, LENGTH))
    batch: int | str = 1
    length: int | str = LENGTH
    extra: Mapping[int, Feed] = field(default_factory=dict)  # sample -> arrays that are put into it


FIXED = Sizes()


def one_output(_net: Net, y: str) -> list[str]:
    return [y]


def case(
    name: str,
    build: Callable[[Net, str], str],
    hazards: Sequence[Hazard] = (),
    *,
    why: str,
    atol: float = 0.05,
    sizes: Sizes = FIXED,
    finish: Callable[[Net, str], list[str]] = one_output,
) -> None:
    """Register `build` between the benign stretches. `finish` makes the outputs of what comes out of them."""

    def make() -> onnx.ModelProto:
        net = Net(crc32(name.encode()))
        x = net.input("x", [sizes.batch, WIDTH, sizes.length])
        with net.scope("before"):
            h = net("Transpose", convolutions(net, x), perm=[0, 2, 1])
            h = norm(net, products(net, h, blocks=2))
        h = build(net, h)
        with net.scope("after"):
            h = products(net, norm(net, h))
            y = net("Add", net("MatMul", h, net.normal(WIDTH, WIDTH, scale=WIDTH**-0.5)), net.normal(WIDTH))
        return net.model(name, finish(net, y), [sizes.batch, sizes.length, WIDTH])

    def sample(seed: int, index: int, batch: int, length: int) -> Feed:
        random = np.random.default_rng([seed, index, crc32(name.encode())])
        feed = {"x": random.standard_normal((batch, WIDTH, length)).astype(np.float32)}
        for member in hazards:
            feed |= {key: draw(random).astype(np.float32) for key, (_, draw) in member.inputs.items()}
        return feed | sizes.extra.get(index, {})

    def samples(seed: int) -> list[Feed]:
        return [sample(seed, index, *size) for index, size in enumerate(sizes.of)]

    CASES[name] = Case(name, make, samples, tuple(hazards), why, atol)


def chain(name: str, names: Sequence[str], *, why: str = "", atol: float = 0.05, sizes: Sizes = FIXED) -> None:
    """A case of hazards one after the other; each result is mixed and added to what goes in."""
    hazards = [HAZARDS[n] for n in names]

    def build(net: Net, h: str) -> str:
        for index, member in enumerate(hazards):
            with net.scope("between"):
                h = norm(net, h) if index else h
            result = member.add(net, h)
            with net.scope("between"):
                h = net("Add", h, net("MatMul", result, net.normal(WIDTH, WIDTH, scale=WIDTH**-0.5)))
        return h

    case(name, build, hazards, why=why or hazards[0].why, atol=atol, sizes=sizes)


def side_by_side(name: str, names: Sequence[str], *, why: str, atol: float = 0.05) -> None:
    """A case of hazards in parallel branches, each with half of the width."""
    hazards = [HAZARDS[n] for n in names]

    def build(net: Net, h: str) -> str:
        results = [member.add(net, h) for member in hazards]
        with net.scope("between"):
            mixed = [net("MatMul", r, net.normal(WIDTH, WIDTH // len(hazards), scale=0.4)) for r in results]
            return net("Add", h, net("Concat", *mixed, axis=-1))

    case(name, build, hazards, why=why, atol=atol)
