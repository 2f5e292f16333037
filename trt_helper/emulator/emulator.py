"""Graph, plan and one sample go in; what an FP16 engine would answer comes out, on any CPU.

Every float tensor that an FP16 layer reads or writes, weights included, is rounded to the nearest
half (ties to even, overflow to inf, subnormals kept); inside a layer arithmetic runs in FP32, as
tensor cores accumulate. ONNX Runtime's CPU provider does not do that by itself: it runs FP16 nodes
in FP32 and drops the roundings between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.checkpoints import LIMIT, Keys, Prefixes
from trt_helper.emulator.kernels import EmulationError, Kernel, Kernels, Rounder
from trt_helper.onnx_model.graph import Graph, captured
from trt_helper.onnx_model.precision import Precisions, assign
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, Layer, Plan, ReducedPrecision, Role, TensorName, Tensors

Rounded = dict[tuple[TensorName, ReducedPrecision], Array]  # what has been rounded for its readers
Watch = Callable[[str, Array, Array], None]  # layer, a float tensor of it, and what a half holds of that
FP32 = Precisions({}, {})
FP16 = ReducedPrecision.FP16


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One layer on one sample: its outputs in FP32, in the trial, and fed with the reference's inputs."""

    layer: Layer
    reference: Mapping[TensorName, Array]
    accumulated: Mapping[TensorName, Array]
    isolated: Mapping[TensorName, Array]


@dataclass(frozen=True, eq=False, slots=True)
class _Prepared:
    """What does not change with the plan: how a layer is computed and what can be forgotten after it."""

    layer: Layer
    kernel: Kernel
    reads: tuple[tuple[TensorName, bool, bool], ...]  # name, follows the layer's precision, is initializer
    writes: tuple[tuple[TensorName, bool], ...]  # name, to be rounded when the layer is half
    last_read: tuple[TensorName, ...]


class Emulator:
    """Evaluates plans of one graph. Changing the plan or the sample needs no set-up. Thread-safe."""

    def __init__(self, graph: Graph, store: ArrayStore | None = None) -> None:
        self.graph = graph
        self.store = store or ArrayStore.within(None)  # for rounded weights and other arrays that are kept
        self._round = {kind: Rounder(kind) for kind in ReducedPrecision}
        self._weights: Tensors = {}
        self._prefixes = Prefixes(self.store.reserve(LIMIT))
        self._last: tuple[Plan, Precisions, Keys] | None = None  # one plan is run on many samples
        self._reduced_weights: dict[tuple[TensorName, ReducedPrecision], Array] = {}
        self._rounded_away: dict[str, tuple[int, int]] = {}
        kernels = Kernels(graph.model)
        last = _last_readers(graph)
        self._last_asked = _last_readers(graph, through_movement=True)
        self._steps = tuple(self._prepare(layer, kernels, last.get(layer.name, ())) for layer in graph.layers)
        self._index = {layer.name: index for index, layer in enumerate(graph.layers)}
        self._producers = {name: step for step in self._steps for name, _ in step.writes}
        self._constant_outputs = {
            value.name: value.const_value.numpy()
            for value in graph.model.graph.outputs
            if value.name and value.const_value is not None
        }

    def run(self, plan: Plan, feed: Mapping[TensorName, Array], watch: Watch | None = None) -> Tensors:
        """The model's outputs under `plan`, as FP32 arrays by name; `watch` sees every rounding on the way.

        What the last plan on this very `feed` computed in the same precisions is not computed again.
        """
        precisions, keys = self._assign(plan)
        way = None if watch else self._prefixes.way(feed, keys)
        first, values = way.start() if way else (0, {**feed})
        rounded: Rounded = {}
        for index, step in enumerate(self._steps[first:], first):
            if way:
                way.pass_by(index, values)
            values.update(self._compute(step, values, rounded, precisions, watch))
            _forget(step.last_read, values, rounded)
        if way:
            self._prefixes.keep(way)
        outputs = self._outputs(values)
        return {
            name: self._round[FP16](array) if name in self.graph.half_io else array for name, array in outputs.items()
        }

    def _assign(self, plan: Plan) -> tuple[Precisions, Keys]:
        """Who computes in what; and the precision of each layer in turn, on which all values on the way depend."""
        last = self._last
        if last is None or last[0] != plan:
            found = assign(self.graph, plan)
            self._last = last = plan, found, [found.layers.get(step.layer.name) for step in self._steps]
        return last[1:]

    def walk(self, plan: Plan, feed: Mapping[TensorName, Array]) -> Iterator[Step]:
        """Trial and FP32 reference side by side, layer by layer; holds only what is still to be read.

        What cannot be computed in the trial, such as a rounded index that points outside, is NaN there.
        """
        precisions = assign(self.graph, plan)
        reference: Tensors = {**feed}
        trial: Tensors = {**feed}
        rounded: Rounded = {}
        for step in self._steps:
            name = step.layer.name
            expected = self._compute(step, reference, {}, FP32)
            reduced = precisions.layers.get(name)
            same = all(trial.get(read) is reference.get(read) for read, _, weight in step.reads if not weight)
            if same and not reduced:
                found = isolated = expected
            else:
                found = self._attempt(step, trial, rounded, precisions, expected)
                isolated = found if same else expected
                if reduced and not same:
                    alone = Precisions({name: reduced}, {})
                    isolated = self._attempt(step, reference, {}, alone, expected)
            yield Step(step.layer, expected, found, isolated)
            reference.update(expected)
            trial.update(found)
            _forget(step.last_read, reference, {})
            _forget(step.last_read, trial, rounded)

    def reference(self, feed: Mapping[TensorName, Array]) -> Tensors:
        """The model's outputs in FP32, through the same kernels and without any rounding."""
        values: Tensors = {**feed}
        for step in self._steps:
            values.update(self._compute(step, values, {}, FP32))
            _forget(step.last_read, values, {})
        return self._outputs(values)

    def shapes(self, feed: Mapping[TensorName, Array]) -> dict[TensorName, tuple[int, ...]]:
        """The shape of every tensor for this sample, and of every weight."""
        found = {name: array.shape for name, array in (*feed.items(), *self._weights.items())}
        values: Tensors = {**feed}
        for step in self._steps:
            made = self._compute(step, values, {}, FP32)
            found.update((name, array.shape) for name, array in made.items())
            values.update(made)
            _forget(step.last_read, values, {})
        return found

    def has_rounded_weights(self, name: str) -> bool:
        """Whether rounding changes any weight of this layer."""
        reads = self._steps[self._index[name]].reads
        return any(
            weight
            and follows
            and not np.array_equal(self._weights[read], self._reduced_weight(read, FP16), equal_nan=True)
            for read, follows, weight in reads
        )

    def rounded_away(self, name: str) -> tuple[int, int]:
        """How many of the layer's weights FP16 makes infinite, and how many 0."""
        if name not in self._rounded_away:
            overflow = underflow = 0
            for read, follows, weight in self._steps[self._index[name]].reads:
                if weight and follows:
                    exact, half = self._weights[read], self._reduced_weight(read, FP16)
                    overflow += int(np.count_nonzero(np.isfinite(exact) & ~np.isfinite(half)))
                    underflow += int(np.count_nonzero((exact != 0) & (half == 0)))
            self._rounded_away[name] = overflow, underflow
        return self._rounded_away[name]

    def all_values(self, feed: Mapping[TensorName, Array], store: ArrayStore | None = None) -> Tensors:
        """Every tensor of the FP32 model at once, kept in `store`."""
        store = store or self.store.part()
        values: Tensors = {**feed}
        for step in self._steps:
            values.update(store.keep_all(self._compute(step, values, {}, FP32)))
        return values

    def inject(self, roundings: Iterable[tuple[TensorName, str]], reference: Tensors) -> Tensors:
        """The outputs that change when single roundings are put into the FP32 model.

        Each rounding is (tensor, consumer): only `consumer` reads that tensor rounded, be it through
        movement layers. No tensor means the consumer's weights, no consumer the graph's outputs.
        `reference` is `all_values` of the sample.
        """
        by_consumer: dict[str, set[TensorName]] = {}
        for tensor, consumer in roundings:
            by_consumer.setdefault(consumer, set()).add(tensor)
        changed: Tensors = {}
        first = min((self._index[name] for name in by_consumer if name), default=len(self._steps))
        for step in self._steps[first:]:
            rounded: Collection[TensorName] = by_consumer.get(step.layer.name, frozenset())
            if not rounded and not any(read in changed for read, _, _ in step.reads):
                continue
            results = step.kernel.run(
                [
                    self._read(name, FP16 if "" in rounded and follows else None, True, {}, {}, FP32)
                    if weight
                    else self._travelled(name, rounded, reference, changed)
                    for name, follows, weight in step.reads
                ]
            )
            for (name, _), result in zip(step.writes, results, strict=True):
                if not np.array_equal(result, reference[name], equal_nan=result.dtype.kind == "f"):
                    changed[name] = result
            for name in self._last_asked.get(step.layer.name, ()):
                changed.pop(name, None)
        rounded = by_consumer.get("", frozenset())
        arrived = {name: self._travelled(name, rounded, reference, changed) for name in self.graph.outputs}
        return {name: array for name, array in arrived.items() if array is not reference.get(name)}

    def _travelled(
        self, name: TensorName, rounded: Collection[TensorName], reference: Tensors, changed: Tensors
    ) -> Array:
        """What arrives under `name` when the tensors in `rounded` are rounded on this way alone."""
        current = changed.get(name, reference.get(name))
        if current is None:
            return self._constant_outputs[name]
        if name in rounded:
            return self._round[FP16](current)
        producer = self._producers.get(name)
        if not rounded or producer is None or producer.layer.role is not Role.MOVEMENT:
            return current
        arrived = [
            self._moved_constant(read, rounded) if weight else self._travelled(read, rounded, reference, changed)
            for read, _, weight in producer.reads
        ]
        before = [
            self._weights[read] if weight else changed.get(read, reference.get(read))
            for read, _, weight in producer.reads
        ]
        if all(a is b for a, b in zip(arrived, before, strict=True)):
            return current
        return dict(zip((write for write, _ in producer.writes), producer.kernel.run(arrived), strict=True))[name]

    def _moved_constant(self, name: TensorName, rounded: Collection[TensorName]) -> Array:
        return self._reduced_weight(name, FP16) if name in rounded else self._weights[name]

    def _prepare(self, layer: Layer, kernels: Kernels, last_read: tuple[TensorName, ...]) -> _Prepared:
        node, ports = self.graph.nodes[layer.name], self.graph.ports[layer.name]
        reads = [
            (value.name or "", index in ports.inputs, self._is_weight(value))
            for index, value in enumerate(node.inputs)
            if value is not None
        ]
        if outer := captured(node):
            reads += [(value.name or "", False, self._is_weight(value)) for value in outer]
            reads = list({read[0]: read for read in reads}.values())
        rounds = layer.role is Role.COMPUTE or layer.op == "ConstantOfShape"
        writes = [
            (value.name, rounds and index in ports.outputs) for index, value in enumerate(node.outputs) if value.name
        ]
        return _Prepared(layer, kernels.of(node), tuple(reads), tuple(writes), last_read)

    def _is_weight(self, value: ir.Value) -> bool:
        if not value.is_initializer() or value.const_value is None:
            return False
        if value.name and value.name not in self._weights:
            self._weights[value.name] = value.const_value.numpy()
        return True

    def _compute(
        self, step: _Prepared, values: Tensors, rounded: Rounded, precisions: Precisions, watch: Watch | None = None
    ) -> Tensors:
        reduced = precisions.layers.get(step.layer.name)
        feeds = [
            self._read(name, reduced if follows else None, weight, values, rounded, precisions)
            for name, follows, weight in step.reads
        ]
        results = step.kernel.run(feeds)
        written = {
            name: self._round[reduced](result) if reduced and rounds else result
            for (name, rounds), result in zip(step.writes, results, strict=True)
        }
        if watch and reduced:
            for (name, follows, weight), array in zip(step.reads, feeds, strict=True):
                if follows:
                    watch(step.layer.name, self._weights[name] if weight else values[name], array)
            for (name, rounds), result in zip(step.writes, results, strict=True):
                if rounds:
                    watch(step.layer.name, result, written[name])
        return written

    def _attempt(
        self, step: _Prepared, values: Tensors, rounded: Rounded, precisions: Precisions, expected: Tensors
    ) -> Tensors:
        try:
            return self._compute(step, values, rounded, precisions)
        except EmulationError:
            return {
                name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
                for name, array in expected.items()
            }

    def _read(
        self,
        name: TensorName,
        reduced: ReducedPrecision | None,
        weight: bool,
        values: Tensors,
        rounded: Rounded,
        precisions: Precisions,
    ) -> Array:
        if weight:
            return self._reduced_weight(name, reduced) if reduced else self._weights[name]
        if not reduced or precisions.tensors.get(name) is reduced:
            return values[name]
        if (name, reduced) not in rounded:
            rounded[name, reduced] = self._round[reduced](values[name])
        return rounded[name, reduced]

    def _reduced_weight(self, name: TensorName, reduced: ReducedPrecision) -> Array:
        if (name, reduced) not in self._reduced_weights:
            self._reduced_weights[name, reduced] = self.store.keep(self._round[reduced](self._weights[name]))
        return self._reduced_weights[name, reduced]

    def _outputs(self, values: Tensors) -> Tensors:
        return {name: self._constant_outputs.get(name, values.get(name)) for name in self.graph.outputs}  # type: ignore[misc]


def _forget(names: tuple[TensorName, ...], values: Tensors, rounded: Rounded) -> None:
    for name in names:
        values.pop(name, None)
        for reduced in ReducedPrecision:
            rounded.pop((name, reduced), None)


def _last_readers(graph: Graph, *, through_movement: bool = False) -> dict[str, tuple[TensorName, ...]]:
    """For each layer the tensors that nobody reads after it; what nobody reads at all goes with its maker.

    `through_movement` counts who reads what a movement layer makes of a tensor among its readers.
    """
    last: dict[TensorName, str] = {}
    origins: dict[TensorName, tuple[TensorName, ...]] = {}  # what came to a tensor by movement layers
    for layer in graph.layers:
        read = tuple(dict.fromkeys(o for name in layer.inputs for o in (name, *origins.get(name, ()))))
        if through_movement and layer.role is Role.MOVEMENT:
            origins.update(dict.fromkeys(layer.outputs, read))
        last.update(dict.fromkeys((*read, *layer.outputs), layer.name))
    kept = set(graph.outputs)
    kept |= {origin for name in kept for origin in origins.get(name, ())}
    forgotten: dict[str, list[TensorName]] = {}
    for tensor, name in last.items():
        if tensor and tensor not in kept:
            forgotten.setdefault(name, []).append(tensor)
    return {name: tuple(tensors) for name, tensors in forgotten.items()}
