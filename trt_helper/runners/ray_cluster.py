"""Trials on a Ray cluster: an oracle that sends each plan to a worker, and plans that will probably follow with it.

Ray places the trials, repeats those whose worker was lost, and holds the model once per machine. The search decides
which plans are tried, in which order, as it does on a single machine, so the answer is the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
import onnx_ir as ir
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RaySystemError, RayTaskError, WorkerCrashedError

from trt_helper.emulator.emulator import Emulator
from trt_helper.errors import MachineError, TrtHelperError, first_line
from trt_helper.onnx_model.graph import Graph, read_graph
from trt_helper.onnx_model.load import Model
from trt_helper.search.oracle import Criteria, Judgement, Oracle, OracleFactory, emulated
from trt_helper.search.strategy import Speculative, no_plans
from trt_helper.system.versions import versions
from trt_helper.values import Array, IntermediateError, Plan, Reading, Rewrite, Trial, Verdict

RETRIES = 3  # times that a trial is begun again after its worker was lost
LARGE = 1 << 10  # bytes; larger weights travel beside the model, and every worker of a machine reads the same copy
PATIENCE = 5.0  # seconds for an address to answer; Ray itself tries for many minutes
Key = tuple[ray.ObjectRef, tuple[int, ...], Plan]
"""A trial: the job, the indices of the samples, and the plan."""


class Cluster:
    """A connection to Ray. Trials that were begun through it end with it.

    Args:
        address: as `ray.init` takes it: "auto" for the cluster of this machine, HOST:PORT, ray://HOST:PORT. In a
            program that is connected already that connection is used, and left open.
        make: makes the oracle, on the workers; None for the emulator.
        gpus: the number of GPUs that each trial needs.
        readings: what kernels are taken to compute, for the emulator.

    Raises:
        MachineError: on entering, where there is no such cluster, or where it has too few GPUs.
    """

    def __init__(
        self,
        address: str = "auto",
        make: OracleFactory | None = None,
        *,
        gpus: int = 0,
        readings: Sequence[Reading] = (Reading.TYPICAL,),
    ) -> None:
        self._address = address
        self._make = make
        self._gpus = gpus
        self._readings = tuple(readings)
        self._ours = False
        self._running: dict[Key, ray.ObjectRef] = {}

    def __enter__(self) -> Cluster:
        if not ray.is_initialized():
            _connect(self._address)
            self._ours = True
        if (gpus := self._total("GPU")) < self._gpus:
            self._leave()
            raise MachineError(
                f"the Ray cluster {self._address!r} has {gpus:g} GPUs, and a trial needs {self._gpus}",
                fix="add a machine with one (ray start --address=HEAD --num-gpus=1), or leave --runner out",
            )
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._leave()

    def oracle(self, graph: Graph, criteria: Criteria) -> ClusterOracle:
        """Make the oracle of a graph: the `oracle` of `locate`."""
        cpus = 1 if self._make else min(len(criteria.samples), self._smallest_machine())
        slots = int(self._total("GPU") // self._gpus if self._gpus else self._total("CPU") // cpus)
        make = self._make or partial(emulated, threads=cpus, readings=self._readings)
        job = ray.put(_Job(_packed(graph), make, criteria, versions()))
        needs = {"num_cpus": cpus, "num_gpus": self._gpus, "max_retries": RETRIES, "max_calls": 0}
        task = ray.remote(**needs)(_judge)
        return ClusterOracle(self._running, job, task, max(slots, 1))

    def _total(self, resource: str) -> float:
        return float(ray.cluster_resources().get(resource, 0))

    def _smallest_machine(self) -> int:
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        return min((count for count in cpus if count), default=1)

    def _leave(self) -> None:
        _cancel(self._running, self._running.keys())
        if self._ours:
            ray.shutdown()
            self._ours = False


@dataclass(frozen=True, eq=False)
class ClusterOracle:
    """Judges plans on the workers, several side by side.

    Attributes:
        running: the trials that were begun and not fetched yet; shared by all oracles of a cluster.
        job: the graph and the criteria in Ray's object store.
        task: the remote function that judges one plan.
        slots: the number of trials that the cluster can run at a time.
    """

    running: dict[Key, ray.ObjectRef]
    job: ray.ObjectRef
    task: Any
    slots: int

    def judge(self, plan: Plan, samples: Sequence[int], speculative: Speculative = no_plans) -> Judgement:
        """The worker's judgement.

        Raises:
            MachineError: the cluster cannot be used.
            TrtHelperError: what the trial raised.
        """
        key = self.job, tuple(samples), plan
        try:
            judgement: Judgement = ray.get(self._begun(key, speculative))
            del self.running[key]
        except RayTaskError as error:
            raise _cause(error) from error
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError):
            return Judgement(Trial(plan, Verdict.UNRESOLVED, why=f"it ended its worker {RETRIES + 1} times"))
        except RayError as error:
            raise MachineError(f"the Ray cluster failed: {first_line(error)}", fix="look at `ray status`") from error
        return judgement

    def intermediate_errors(
        self, _plan: Plan, _sample: int, _emulator: Emulator, _on_warning: Callable[[str], None]
    ) -> tuple[IntermediateError, ...]:
        """None: engines stay on the workers."""
        return ()

    def _begun(self, key: Key, speculative: Speculative) -> ray.ObjectRef:
        """Begin this trial, and as many of the speculative ones as there is room for; cancel the others."""
        job, samples, _ = key
        following = ((job, samples, plan) for plan in speculative())
        keys = list(islice(chain([key], following), self.slots))
        _cancel(self.running, self.running.keys() - keys)
        for one in keys:
            if one not in self.running:
                self.running[one] = self.task.remote([self.job], *one[1:])
        return self.running[key]


def _cancel(running: dict[Key, ray.ObjectRef], keys: Iterable[Key]) -> None:
    for key in list(keys):
        with contextlib.suppress(RayError):
            ray.cancel(running.pop(key))


def _connect(address: str) -> None:
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address:
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")  # what failed is said by us
    except (OSError, ValueError, OverflowError, RuntimeError, RayError) as error:
        raise MachineError(
            f"no Ray cluster answers at {address!r}: {first_line(error)}",
            fix="start one (ray start --head), or give the address of one as HOST:PORT",
        ) from error


def _cause(error: RayTaskError) -> BaseException:
    """What a trial raised, as it would have raised it here."""
    cause = error.cause
    if isinstance(cause, ImportError | RaySystemError):  # the second before the trial's own code is reached
        return MachineError(
            f"a machine of the Ray cluster cannot run a trial: {str(cause).strip().splitlines()[-1]}",
            fix="install the same trt-helper, with the same extras, on every machine of it",
        )
    return cause if isinstance(cause, TrtHelperError) else error


@dataclass(frozen=True, eq=False, slots=True)
class _Packed:
    """A graph as it travels: large weights as arrays, which Ray shares between the workers of a machine."""

    path: Path
    sha256: str
    rewrites: tuple[Rewrite, ...]
    proto: bytes  # large weights are external there, and their location is a place in `weights`
    weights: tuple[Array, ...]


def _packed(graph: Graph) -> _Packed:
    model = graph.source.ir_model.clone()
    weights: list[Array] = []
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None or tensor.dtype is ir.DataType.STRING:
            continue
        if tensor.nbytes > LARGE or isinstance(tensor, ir.ExternalTensor):
            place, name = str(len(weights)), value.name or ""
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(place, None, None, tensor.dtype, shape=shape, name=name)
            weights.append(tensor.numpy())
    for node in (node for part in model.graphs() for node in part):
        for name, attribute in list(node.attributes.items()):
            if attribute.type is ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy(), attribute.value.dtype))
    proto: onnx.ModelProto = ir.to_proto(model)
    return _Packed(graph.source.path, graph.source.sha256, graph.rewrites, proto.SerializeToString(), tuple(weights))


def _unpacked(packed: _Packed) -> Graph:
    model = ir.from_proto(onnx.ModelProto.FromString(packed.proto))
    for value in _initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            array = packed.weights[int(str(tensor.location))]
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
    return read_graph(Model(packed.path, packed.sha256, model), packed.rewrites)


def _initializers(model: ir.Model) -> list[ir.Value]:
    return [value for graph in model.graphs() for value in graph.initializers.values()]


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """What does not change from trial to trial. It lies in Ray's object store, once per machine."""

    graph: _Packed
    make: OracleFactory
    criteria: Criteria
    versions: Mapping[str, str]


@lru_cache(maxsize=1)
def _oracle(job: ray.ObjectRef) -> Oracle:
    """The oracle of this worker process, made when the first trial comes."""
    found: _Job = ray.get(job)
    here = versions()
    if here != found.versions:
        differ = ", ".join(f"{name} {here[name]} is not {wanted}" for name, wanted in found.versions.items())
        raise MachineError(
            f"{platform.node()} of the Ray cluster has other versions: {differ}",
            fix="install the same versions on every machine of the cluster",
        )
    try:
        return found.make(_unpacked(found.graph), found.criteria)
    except MachineError as error:
        raise MachineError(f"{platform.node()} of the Ray cluster: {error.message}", fix=error.fix) from error


def _judge(jobs: Sequence[ray.ObjectRef], samples: Sequence[int], plan: Plan) -> Judgement:
    """One trial, on a worker."""
    (job,) = jobs  # in a list, so that Ray does not fetch it for every trial anew
    return _oracle(job).judge(plan, samples)
