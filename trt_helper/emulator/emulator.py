"""Emulate on the CPU, layer by layer, what an engine computes in FP16 or BF16.

Every float tensor that an FP16 layer reads or writes, weights included, is rounded to the nearest FP16 value (ties
to even, overflow to inf, subnormals kept). Within a layer arithmetic runs in FP32, as tensor cores accumulate, or in
the steps that kernels take (`emulator.lowering`).
ONNX Runtime's CPU provider does not do that by itself: it runs FP16 nodes in FP32 and drops the roundings between
them. So each layer runs in an FP32 session of its own, and the roundings are applied between the sessions.
All arrays here are FP32, also those with values rounded to FP16 or BF16.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from trt_helper.emulator.checkpoints import LIMIT, CheckpointStore, Keys
from trt_helper.emulator.gradients import ELEMENTWISE, EvaluatedLayer
from trt_helper.emulator.kernels import EmulationError, Kernel, Kernels, LoopKernel, Rounder, SelectKernel
from trt_helper.onnx_model.branches import Conditions, conditions
from trt_helper.onnx_model.float_types import REDUCED
from trt_helper.onnx_model.graph import Graph, captured
from trt_helper.onnx_model.precision import Precisions, assign
from trt_helper.system.array_store import ArrayStore
from trt_helper.values import Array, Layer, LayerName, Plan, Reading, ReducedPrecision, Role, TensorName, Tensors

Rounded = dict[tuple[TensorName, ReducedPrecision], Array]  # tensors that were rounded for a consumer, by precision
Reads = Sequence[tuple[TensorName, Array, bool]]  # name, array, whether it is a weight
Watch = Callable[[str, Array, Array], None]  # called with layer name, a float tensor of the layer, the same rounded
FP32 = Precisions({}, {})  # the reference: no layer and no tensor has reduced precision, and none is lowered
FP16 = ReducedPrecision.FP16
POINTWISE = ELEMENTWISE | {"BatchNormalization"}
WITH_EPILOGUE = POINTWISE | {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # a kernel of these goes on with such layers
FEW = 256  # elements of two tensors that are compared first


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One layer on one sample: its outputs by name, computed in three ways."""

    layer: Layer
    reference: Mapping[TensorName, Array]  # in FP32
    accumulated: Mapping[TensorName, Array]  # in the trial, from the trial's inputs
    isolated: Mapping[TensorName, Array]  # in the trial's precision, from the reference's inputs
    reduced: ReducedPrecision | None  # the trial's precision, None for FP32
    reads: Callable[[], Reads]  # what it reads in FP32; to be called before the next step


@dataclass(frozen=True, eq=False, slots=True)
class Injected:
    """What single roundings change.

    Attributes:
        changed: the outputs of the graph that are not the reference's.
        share: the share of the layers that was computed to find out, between 0 and 1.
    """

    changed: Tensors
    share: float


@dataclass(frozen=True, eq=False, slots=True)
class _PreparedLayer:
    """The part of a layer's evaluation that does not depend on the plan."""

    layer: Layer
    kernel: Kernel | SelectKernel
    lowered: Mapping[
        ReducedPrecision | None, Kernel | LoopKernel | SelectKernel
    ]  # what computes it in a trial; None: in FP32
    reads: tuple[tuple[TensorName, bool, bool], ...]  # name, follows the layer's precision, is initializer
    writes: tuple[tuple[TensorName, bool], ...]  # name, is rounded when the layer has reduced precision
    last_read: tuple[TensorName, ...]  # tensors that no later layer reads
    conditions: Conditions  # of the branches that it is in; else it is not computed
    nothing: Tensors  # its outputs then: empty arrays


class Emulator:
    """Evaluates plans of one graph. Changing the plan or the sample needs no set-up. Thread-safe.

    A `feed` maps each input of the graph to an array: floats in FP32, also where the file's input is FP16.
    """

    def __init__(self, graph: Graph, store: ArrayStore | None = None, reading: Reading = Reading.TYPICAL) -> None:
        """Prepare every layer of `graph`.

        Args:
            graph: The graph.
            store: Where rounded weights and other arrays that are kept go.
            reading: What kernels are taken to compute in half precision.
        """
        self.graph = graph
        self.reading = reading
        self.store = store or ArrayStore.within(None)
        self._round = {kind: Rounder(kind) for kind in ReducedPrecision}
        self._weights: Tensors = {}
        self._checkpoints = CheckpointStore(self.store.reserve(LIMIT))
        self._last_plan: tuple[Plan, Precisions, Keys] | None = None  # usually run on many samples in turn
        self._reduced_weights: dict[tuple[TensorName, ReducedPrecision], Array] = {}
        self._rounded_away: dict[str, tuple[int, int]] = {}
        self._rounds_inside: dict[str, bool] = {}
        kernels = Kernels(graph.model)
        self._conditions = conditions(graph.model.graph)
        last_read = _last_read(graph)
        self._last_read_through_movement = _last_read(graph, through_movement=True)
        self._layers = tuple(self._prepare(layer, kernels, last_read.get(layer.name, ())) for layer in graph.layers)
        self._index = {layer.name: index for index, layer in enumerate(graph.layers)}
        self._producers = {name: prepared for prepared in self._layers for name, _ in prepared.writes}
        self._chains = _chains(graph) if reading is Reading.EXACT else {}
        self._constant_outputs = {
            value.name: value.const_value.numpy()
            for value in graph.model.graph.outputs
            if value.name and value.const_value is not None
        }

    def run(self, plan: Plan, feed: Mapping[TensorName, Array], watch: Watch | None = None) -> Tensors:
        """The model's outputs under `plan`.

        The run resumes from a checkpoint of the last run on this very `feed`, if that computed the first layers in
        the same precisions.

        Args:
            plan: The layers in FP32 and in BF16. All others run in FP16.
            feed: One sample. The same object must be passed again for checkpoints to be used.
            watch: Called with every rounding. With it, all layers are computed.

        Returns:
            FP32 arrays by output name. Outputs that are FP16 or BF16 in the file are rounded to that.

        Raises:
            EmulationError: A layer cannot be computed from its inputs, such as a rounded index out of range.
        """
        precisions, keys = self._assign(plan)
        checkpoints = None if watch or self._chains else self._checkpoints.begin(feed, keys)
        first, values = checkpoints.resume() if checkpoints else (0, {**feed})
        rounded: Rounded = {}
        for index, prepared in enumerate(self._layers[first:], first):
            if checkpoints:
                checkpoints.save(index, values)
            values.update(self._compute(prepared, values, rounded, precisions, watch))
            _drop(prepared.last_read, values, rounded)
        if checkpoints:
            self._checkpoints.keep(checkpoints)
        outputs = self._outputs(values)
        stored = {name: REDUCED[dtype] for name, dtype in self.graph.io_types.items() if dtype in REDUCED}
        return {name: self._round[stored[name]](array) if name in stored else array for name, array in outputs.items()}

    def _assign(self, plan: Plan) -> tuple[Precisions, Keys]:
        """The precisions under `plan`, and the precision of each layer in order: the keys of checkpoints."""
        last = self._last_plan
        if last is None or last[0] != plan:
            found = assign(self.graph, plan)
            self._last_plan = last = plan, found, [found.layers.get(prepared.layer.name) for prepared in self._layers]
        return last[1:]

    def walk(self, plan: Plan, feed: Mapping[TensorName, Array]) -> Iterator[Step]:
        """Compute the trial and the FP32 reference side by side, one layer at a time.

        Tensors that no later layer reads are dropped, so memory stays small. If a layer cannot be computed in the
        trial, such as with a rounded index out of range, its float outputs there are NaN.

        Args:
            plan: The layers in FP32 and in BF16. All others run in FP16.
            feed: One sample.

        Yields:
            One `Step` per layer, in topological order. Where a layer's inputs are the reference's and it runs in
            FP32, the three results are the same arrays.
        """
        precisions = assign(self.graph, plan)
        reference: Tensors = {**feed}
        trial: Tensors = {**feed}
        rounded: Rounded = {}
        for prepared in self._layers:
            name = prepared.layer.name
            expected = self._compute(prepared, reference, {}, FP32)
            reduced = precisions.layers.get(name)
            same = all(trial.get(read) is reference.get(read) for read, _, weight in prepared.reads if not weight)
            as_reference = not reduced and prepared.lowered[None] is prepared.kernel
            if same and as_reference:
                found = isolated = expected
            else:
                found = self._compute_or_nan(prepared, trial, rounded, precisions, expected)
                isolated = found if same else expected
                if not same and not as_reference:
                    alone = Precisions({name: reduced} if reduced else {}, {})
                    isolated = self._compute_or_nan(prepared, reference, {}, alone, expected)
            reads = partial(self._reads, prepared, reference)
            yield Step(prepared.layer, expected, found, isolated, reduced, reads)
            reference.update(expected)
            trial.update(found)
            _drop(prepared.last_read, reference, {})
            _drop(prepared.last_read, trial, rounded)

    def _reads(self, prepared: _PreparedLayer, values: Tensors) -> Reads:
        """What a layer reads."""
        return [(name, self._weights[name] if weight else values[name], weight) for name, _, weight in prepared.reads]

    def reference(self, feed: Mapping[TensorName, Array]) -> Tensors:
        """The model's outputs in FP32, through the same kernels and without any rounding."""
        values: Tensors = {**feed}
        for prepared in self._layers:
            values.update(self._compute(prepared, values, {}, FP32))
            _drop(prepared.last_read, values, {})
        return self._outputs(values)

    def shapes(self, feed: Mapping[TensorName, Array]) -> dict[TensorName, tuple[int, ...]]:
        """The shape of every tensor for this sample, and of every weight."""
        found = {name: array.shape for name, array in (*feed.items(), *self._weights.items())}
        values: Tensors = {**feed}
        for prepared in self._layers:
            written = self._compute(prepared, values, {}, FP32)
            found.update((name, array.shape) for name, array in written.items())
            values.update(written)
            _drop(prepared.last_read, values, {})
        return found

    def rounds_inside(self, name: str) -> bool:
        """Whether FP16 changes any weight of this layer, or its kernel rounds between steps."""
        if name not in self._rounds_inside:
            prepared = self._layers[self._index[name]]
            self._rounds_inside[name] = prepared.lowered[FP16] is not prepared.kernel or any(
                weight and follows and _differs(self._weights[read], self._reduced_weight(read, FP16))
                for read, follows, weight in prepared.reads
            )
        return self._rounds_inside[name]

    def rounded_away(self, name: str) -> tuple[int, int]:
        """The number of the layer's weights that become infinite in FP16, and of those that become 0."""
        if name not in self._rounded_away:
            overflow = underflow = 0
            for read, follows, weight in self._layers[self._index[name]].reads:
                if weight and follows:
                    exact, half = self._weights[read], self._reduced_weight(read, FP16)
                    overflow += int(np.count_nonzero(np.isfinite(exact) & ~np.isfinite(half)))
                    underflow += int(np.count_nonzero((exact != 0) & (half == 0)))
            self._rounded_away[name] = overflow, underflow
        return self._rounded_away[name]

    def all_values(self, feed: Mapping[TensorName, Array], store: ArrayStore | None = None) -> Tensors:
        """Every tensor of the FP32 model except weights, kept in `store` (by default a part of the emulator's own)."""
        store = store or self.store.part()
        values: Tensors = {**feed}
        for prepared in self._layers:
            values.update(store.keep_all(self._compute(prepared, values, {}, FP32)))
        return values

    def inject(self, roundings: Iterable[tuple[TensorName, str]], reference: Tensors) -> Injected:
        """The outputs that change when single roundings to FP16 are put into the FP32 model.

        Args:
            roundings: Pairs (tensor, consumer). Only `consumer` reads the tensor rounded, directly or through
                movement layers. An empty tensor name means the consumer's weights and the steps inside of its
                kernel; an empty consumer means the outputs of the graph.
            reference: The result of `all_values` for the sample.

        Returns:
            FP32 arrays of the outputs that differ from the reference, and the share of the layers that it took.
        """
        by_consumer: dict[str, set[TensorName]] = {}
        for tensor, consumer in roundings:
            by_consumer.setdefault(consumer, set()).add(tensor)
        changed: Tensors = {}
        computed = 0
        first = min((self._index[name] for name in by_consumer if name), default=len(self._layers))
        for prepared in self._layers[first:]:
            rounded: Collection[TensorName] = by_consumer.get(prepared.layer.name, frozenset())
            if not rounded and not any(read in changed for read, _, _ in prepared.reads):
                continue
            if prepared.conditions and self._is_skipped_now(prepared, reference, changed):
                continue
            computed += 1
            kernel = prepared.lowered[FP16] if "" in rounded else prepared.kernel
            results = kernel.run(self._read_injected(prepared, rounded, reference, changed))
            for (name, _), result in zip(prepared.writes, results, strict=True):
                if _differs(result, reference[name]):
                    changed[name] = result
            for name in self._last_read_through_movement.get(prepared.layer.name, ()):
                changed.pop(name, None)
        rounded = by_consumer.get("", frozenset())
        outputs = {name: self._injected(name, rounded, reference, changed) for name in self.graph.outputs}
        different = {name: array for name, array in outputs.items() if array is not reference.get(name)}
        return Injected(different, computed / max(len(self._layers), 1))

    def inject_into_layer(self, tensor: TensorName, name: str, reference: Tensors) -> Tensors:
        """The outputs of one layer, or of the graph, when it alone reads `tensor` rounded to FP16, as in `inject`."""
        if not name:
            return {output: self._injected(output, (tensor,), reference, {}) for output in self.graph.outputs}
        prepared = self._layers[self._index[name]]
        if prepared.conditions and self._is_skipped(prepared, reference):
            return prepared.nothing
        kernel = prepared.kernel if tensor else prepared.lowered[FP16]
        results = kernel.run(self._read_injected(prepared, (tensor,), reference, {}))
        return {output: result for (output, _), result in zip(prepared.writes, results, strict=True)}

    def layers_backwards(self, reference: Tensors) -> Iterator[EvaluatedLayer]:
        """Every layer as it is computed in FP32, the last one first.

        Args:
            reference: The result of `all_values` for the sample.
        """
        opset = self.graph.model.opset_imports.get("", 1)

        def array(value: ir.Value | None) -> Array | None:
            name = value.name if value is not None else None
            return self._weights[name] if name in self._weights else reference.get(name or "")

        for prepared in reversed(self._layers):
            if prepared.conditions and self._is_skipped(prepared, reference):
                continue
            node = self.graph.nodes[prepared.layer.name]
            moving = [i for i, v in enumerate(node.inputs) if v is not None and v.name not in self._weights]
            inputs, outputs = [array(value) for value in node.inputs], [array(value) for value in node.outputs]
            yield EvaluatedLayer(node, prepared.kernel, inputs, outputs, moving, opset)

    def _read_injected(
        self, prepared: _PreparedLayer, rounded: Collection[TensorName], reference: Tensors, changed: Tensors
    ) -> list[Array]:
        """The inputs of a layer if the tensors in `rounded` are rounded for it alone; an empty name: its weights."""
        return [
            self._read(name, FP16 if "" in rounded and follows else None, True, {}, {}, FP32)
            if weight
            else self._injected(name, rounded, reference, changed)
            for name, follows, weight in prepared.reads
        ]

    def _injected(
        self, name: TensorName, rounded: Collection[TensorName], reference: Tensors, changed: Tensors
    ) -> Array:
        """The value of `name` that one consumer reads if the tensors in `rounded` are rounded for it alone.

        A rounded tensor may lie behind movement layers: these are then computed again, for this consumer only.
        """
        current = changed.get(name, reference.get(name))
        if current is None:
            return self._constant_outputs[name]
        if name in rounded:
            return self._round[FP16](current)
        producer = self._producers.get(name)
        if not rounded or producer is None or producer.layer.role is not Role.MOVEMENT:
            return current
        inputs = [
            self._injected_weight(read, rounded) if weight else self._injected(read, rounded, reference, changed)
            for read, _, weight in producer.reads
        ]
        before = [
            self._weights[read] if weight else changed.get(read, reference.get(read))
            for read, _, weight in producer.reads
        ]
        if all(a is b for a, b in zip(inputs, before, strict=True)):
            return current
        return dict(zip((write for write, _ in producer.writes), producer.kernel.run(inputs), strict=True))[name]

    def _injected_weight(self, name: TensorName, rounded: Collection[TensorName]) -> Array:
        return self._reduced_weight(name, FP16) if name in rounded else self._weights[name]

    def _prepare(self, layer: Layer, kernels: Kernels, last_read: tuple[TensorName, ...]) -> _PreparedLayer:
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
        kernel = kernels.of(node)
        lowered = {
            kind: kernels.lowered(node, kind, self.reading) if rounds else kernel for kind in (None, *ReducedPrecision)
        }
        nothing = {
            value.name: np.empty(0, value.dtype.numpy() if value.dtype else np.float32)
            for value in node.outputs
            if value.name
        }
        required = self._conditions.get(layer.name, ())
        return _PreparedLayer(layer, kernel, lowered, tuple(reads), tuple(writes), last_read, required, nothing)

    def _is_skipped(self, prepared: _PreparedLayer, values: Mapping[TensorName, Array]) -> bool:
        """Whether the layer is in a branch that is not taken."""
        return any(
            bool((values[name] if name in values else self._weights[name]).reshape(-1)[0]) is not wanted
            for name, wanted in prepared.conditions
        )

    def _is_weight(self, value: ir.Value) -> bool:
        """Whether the value is an initializer; if so, its array is remembered."""
        if not value.is_initializer() or value.const_value is None:
            return False
        if value.name and value.name not in self._weights:
            self._weights[value.name] = value.const_value.numpy()
        return True

    def _is_skipped_now(self, prepared: _PreparedLayer, reference: Tensors, changed: Tensors) -> bool:
        """As `_is_skipped`. Raises EmulationError if rounding makes the model take another branch."""
        skipped = self._is_skipped(prepared, reference)
        if skipped is not self._is_skipped(prepared, ChainMap(changed, reference)):
            raise EmulationError("rounding changes the branch that is taken", fix="keep the condition in FP32")
        return skipped

    def _compute(
        self,
        prepared: _PreparedLayer,
        values: Tensors,
        rounded: Rounded,
        precisions: Precisions,
        watch: Watch | None = None,
    ) -> Tensors:
        """The outputs of one layer from `values`. `rounded` caches what was rounded for its inputs."""
        if prepared.conditions and self._is_skipped(prepared, values):
            return prepared.nothing
        reduced = precisions.layers.get(prepared.layer.name)
        inputs = [
            self._read(name, reduced if follows else None, weight, values, rounded, precisions)
            for name, follows, weight in prepared.reads
        ]
        kernel = prepared.kernel if precisions is FP32 else prepared.lowered[reduced]
        results = kernel.run(inputs)
        written = {
            name: self._round[reduced](result)
            if reduced and rounds and not self._is_fused(name, precisions)
            else result
            for (name, rounds), result in zip(prepared.writes, results, strict=True)
        }
        if watch and reduced:
            for (name, follows, weight), array in zip(prepared.reads, inputs, strict=True):
                if follows:
                    watch(prepared.layer.name, self._weights[name] if weight else values[name], array)
            for (name, rounds), result in zip(prepared.writes, results, strict=True):
                if rounds:
                    watch(prepared.layer.name, result, written[name])
        return written

    def _is_fused(self, name: TensorName, precisions: Precisions) -> bool:
        """Whether the next layer of a chain takes this tensor over as it is computed."""
        reader = self._chains.get(name, "")
        return reader in precisions.layers and precisions.layers[reader] is precisions.tensors.get(name)

    def _compute_or_nan(
        self, prepared: _PreparedLayer, values: Tensors, rounded: Rounded, precisions: Precisions, expected: Tensors
    ) -> Tensors:
        """As `_compute`. If that is impossible: NaN for float outputs, the `expected` arrays for all others."""
        try:
            return self._compute(prepared, values, rounded, precisions)
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
        """One input of a layer, rounded to `reduced` unless that is None or the tensor is stored so already."""
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


def _chains(graph: Graph) -> dict[TensorName, LayerName]:
    """The tensors that only the next layer of a chain reads, a pointwise one, and that layer."""
    readers: dict[TensorName, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    found = {}
    for layer in graph.layers:
        for name in layer.outputs:
            reader, *others = readers.get(name) or [layer]
            fused = layer.op in WITH_EPILOGUE and reader.op in POINTWISE and reader.role is Role.COMPUTE
            if fused and not others and reader is not layer and name not in graph.outputs:
                found[name] = reader.name
    return found


def _differs(a: Array, b: Array) -> bool:
    """Whether any element differs; NaN equals NaN. A few elements tell of most tensors that differ."""
    if a.shape != b.shape:
        return True
    equal_nan = a.dtype.kind == "f"
    if a.size > FEW**2:
        few = slice(None, None, a.size // FEW)
        if not np.array_equal(a.reshape(-1)[few], b.reshape(-1)[few], equal_nan=equal_nan):
            return True
    return not np.array_equal(a, b, equal_nan=equal_nan)


def _drop(names: tuple[TensorName, ...], values: Tensors, rounded: Rounded) -> None:
    for name in names:
        values.pop(name, None)
        for reduced in ReducedPrecision:
            rounded.pop((name, reduced), None)


def _last_read(graph: Graph, *, through_movement: bool = False) -> dict[str, tuple[TensorName, ...]]:
    """For each layer, the tensors that can be dropped after it, because no later layer reads them.

    A tensor without any consumer is dropped after its producer. Outputs of the graph are never dropped.
    `through_movement` also counts the consumers of a movement layer's output as consumers of its inputs.
    """
    last: dict[TensorName, str] = {}
    origins: dict[TensorName, tuple[TensorName, ...]] = {}  # the tensors that movement layers made a tensor from
    for layer in graph.layers:
        read = tuple(dict.fromkeys(o for name in layer.inputs for o in (name, *origins.get(name, ()))))
        if through_movement and layer.role is Role.MOVEMENT:
            origins.update(dict.fromkeys(layer.outputs, read))
        last.update(dict.fromkeys((*read, *layer.outputs), layer.name))
    kept = set(graph.outputs)
    kept |= {origin for name in kept for origin in origins.get(name, ())}
    dropped: dict[str, list[TensorName]] = {}
    for tensor, name in last.items():
        if tensor and tensor not in kept:
            dropped.setdefault(name, []).append(tensor)
    return {name: tuple(tensors) for name, tensors in dropped.items()}
