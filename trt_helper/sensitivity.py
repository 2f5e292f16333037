"""An emulator and samples go in; how much each single rounding matters at the outputs comes out.

A plan silences roundings. There are two kinds. The weights of a layer are rounded unless the layer is
pinned. A value that travels from one layer to another is rounded unless *both* are pinned: an FP16
producer writes a half, an FP16 consumer reads one. So the roundings, and not the layers, are what has
an effect of its own, and each is silenced by one pin or two. This module injects them one at a time
into the FP32 model and follows each only as far downstream as it changes anything.

These are forward passes, not trials: no plan rounds a single edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trt_helper.emulate import Emulator
from trt_helper.kernels import Array
from trt_helper.search.foresight import CAP, NEGLIGIBLE, Effect
from trt_helper.values import LayerName, Role, Statistic, TensorName, Tolerance

WATCHED = 512  # elements per output and sample whose error is followed
MOST_INJECTIONS = 2000  # per sample; what is left then stays in groups


@dataclass(frozen=True, slots=True)
class Source:
    """One rounding. It is silent when every layer in `pins` is pinned."""

    pins: frozenset[LayerName]
    tensor: TensorName  # what is rounded; empty for a layer's weights
    consumer: LayerName  # who reads it; empty for a graph output


def sources(emulator: Emulator) -> list[Source]:
    """Every rounding that the empty plan does, in the order in which they happen."""
    graph = emulator.graph
    found: dict[Source, None] = {}
    origins: dict[TensorName, tuple[tuple[TensorName, LayerName], ...]] = {
        value.name or "": ((value.name or "", ""),) for value in graph.inputs if value.name not in graph.half_io
    }
    for layer in graph.layers:
        node, ports = graph.nodes[layer.name], graph.ports[layer.name]
        followed = {node.inputs[i].name or "" for i in ports.inputs if node.inputs[i] is not None}  # type: ignore[union-attr]
        tensors = [name for name in dict.fromkeys(layer.inputs) if name in origins]
        written = [layer.outputs[i] for i in ports.outputs]
        if layer.role is Role.MOVEMENT and layer.name not in graph.picking:
            moved = tuple(dict.fromkeys(o for name in tensors if name in followed for o in origins[name]))
            origins.update(dict.fromkeys(written, moved))
            continue
        pinnable = layer.role is Role.COMPUTE
        if pinnable and emulator.has_rounded_weights(layer.name):
            found[Source(frozenset((layer.name,)), "", layer.name)] = None
        for name in tensors:
            for tensor, producer in origins[name]:
                owner = {layer.name} if pinnable and name in followed else set()
                pins = frozenset({producer, *owner} - {""})
                if pins and (owner or producer):
                    found[Source(pins, tensor, layer.name)] = None
        if pinnable:
            origins.update({name: ((name, layer.name),) for name in written})
        else:
            origins.update({name: ((name, ""),) for name in layer.outputs})
    for name in graph.outputs:
        for tensor, producer in origins.get(name, ()):
            if producer:
                found[Source(frozenset((producer,)), tensor, "")] = None
    return list(found)


def effects(
    emulator: Emulator,
    feeds: Sequence[Mapping[TensorName, Array]],
    tolerance: Tolerance,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[list[Effect], int]:
    """The effect of every rounding on the outputs of `feeds`, and how many forward passes that took.

    Roundings are injected in groups that are split as long as they matter, so that a large model with
    few culprits needs some passes per culprit and not one per layer.
    """
    every = sources(emulator)
    probes = [_Probe(emulator, feed, tolerance) for feed in feeds]
    found: list[Effect] = []
    queue = _first_groups(every)
    passes, done = len(probes), 0
    while queue:
        group = queue.pop()
        errors = np.concatenate([probe.errors(group) for probe in probes])
        passes += len(probes)
        size = np.abs(errors).max(initial=0.0)
        if len(group) == 1 or size <= NEGLIGIBLE / 4 or passes > MOST_INJECTIONS * len(probes):
            share = errors / np.sqrt(len(group))
            found.extend(Effect(source.pins, share) for source in group)
            done += len(group)
            on_progress(done, len(every))
        else:
            middle = len(group) // 2
            queue += [group[middle:], group[:middle]]
    return found, passes


def _first_groups(every: list[Source]) -> list[list[Source]]:
    """Small models are looked at one rounding at a time, large ones in groups to start with."""
    size = 1 if len(every) <= MOST_INJECTIONS // 4 else 16
    return [every[start : start + size] for start in range(0, len(every), size)][::-1]


class _Probe:
    """One sample: its FP32 values, and the elements of its outputs that are watched."""

    def __init__(self, emulator: Emulator, feed: Mapping[TensorName, Array], tolerance: Tolerance) -> None:
        self._emulator = emulator
        self._reference = emulator.all_values(feed)
        self._watched: dict[TensorName, tuple[Array, Array, Array]] = {}
        for name in emulator.graph.outputs:
            reference = np.asarray(self._reference[name])
            if reference.dtype.kind == "f":
                self._watched[name] = _watch(name, reference.reshape(-1), tolerance)

    def errors(self, group: Iterable[Source]) -> Array:
        """Signed error over tolerance at the watched elements, with the roundings of `group` only."""
        changed = self._emulator.inject([(s.tensor, s.consumer) for s in group], self._reference)
        parts = []
        for name, (index, reference, allowed) in self._watched.items():
            if name not in changed:
                parts.append(np.zeros(index.size))
                continue
            with np.errstate(all="ignore"):
                error = (changed[name].reshape(-1)[index].astype(np.float64) - reference) / allowed
            parts.append(np.clip(np.nan_to_num(error, nan=CAP, posinf=CAP, neginf=-CAP), -CAP, CAP))
        return np.concatenate(parts) if parts else np.zeros(1)


def _watch(name: TensorName, reference: Array, tolerance: Tolerance) -> tuple[Array, Array, Array]:
    """Indices spread evenly over the output, with the largest values among them; what each may be off."""
    if reference.size <= WATCHED:
        index = np.arange(reference.size)
    else:
        even = np.linspace(0, reference.size - 1, WATCHED // 2).astype(np.int64)
        largest = np.argpartition(-np.abs(reference), WATCHED // 2)[: WATCHED // 2]
        index = np.unique(np.concatenate([even, largest]))
    atol, rtol = tolerance.of(name)
    picked = reference[index].astype(np.float64)
    allowed = np.full(picked.shape, atol)
    if tolerance.stat is Statistic.ELEMWISE or atol == 0:
        allowed = np.maximum(atol, rtol * np.abs(picked))
    return index, picked, np.maximum(allowed, np.finfo(np.float64).tiny)
