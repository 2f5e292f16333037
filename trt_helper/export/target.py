"""A module and its inputs go in; a function from flat tensors to flat tensors comes out, with names for both ends.

ONNX knows lists of tensors only. Dictionaries and tuples are put together from the names of the inputs (see `Input`),
and taken apart on the way out: `{"boxes": ..., "scores": (a, b)}` gives `boxes`, `scores.0` and `scores.1`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from trt_helper.errors import ModelError, UsageError
from trt_helper.export.specs import Input
from trt_helper.export.user_code import user_code
from trt_helper.values import Array

SCRIPT = "script"  # the attribute under which a ScriptModule is wrapped
Flat = Callable[..., tuple[torch.Tensor, ...]]
RUN = "check --input: names, shapes and types must be what forward takes"


class _Scripted(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A ScriptModule as an ordinary module, whose forward can be replaced."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.script(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class ExportTarget:
    """What is exported. `program` is set where the checkpoint was a torch.export program."""

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    parameters: tuple[str, ...]  # of forward
    any_name: bool  # forward takes **kwargs
    program: Any = None

    def flat(self, module: torch.nn.Module) -> Flat:
        """`module`'s forward, from the inputs' tensors in their order to its output tensors in theirs."""
        forward = module.forward

        def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            args, kwargs = self.arguments(tensors)
            return tuple(
                leaf for leaf in pytree.tree_leaves(forward(*args, **kwargs)) if isinstance(leaf, torch.Tensor)
            )

        return run

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of forward."""
        if self.program is not None:
            args, kwargs = pytree.tree_unflatten(list(tensors), self.program.call_spec.in_spec)
            return tuple(args), dict(kwargs)
        tree: dict[str, Any] = {}
        for given, tensor in zip(self.inputs, tensors, strict=True):
            *path, last = given.name.split(".")
            place = tree
            for part in path:
                place = place.setdefault(part, {})
            place[last] = tensor
        built = {name: _containers(value) for name, value in tree.items()}
        positional = tuple(value for name, value in built.items() if not (name in self.parameters or self.any_name))
        return positional, {name: v for name, v in built.items() if name in self.parameters or self.any_name}

    def run(self, feed: dict[str, Array]) -> list[torch.Tensor]:
        """The module's answer, FP32, no gradients. Raises ModelError with the user's frames."""
        with user_code("the module", fix=RUN), torch.no_grad():
            return [out.detach().clone() for out in self.flat(self.module)(*self.tensors(feed))]

    def tensors(self, feed: dict[str, Array]) -> tuple[torch.Tensor, ...]:
        """`feed` in the order of the inputs, in memory of its own: a module may write into what it is given."""
        return tuple(torch.from_numpy(feed[given.name].copy()) for given in self.inputs)

    def output_names(self, feed: dict[str, Array]) -> list[str]:
        """A name for each output tensor, after the keys and places at which the module returns it."""
        with user_code("the module", fix=RUN), torch.no_grad():
            args, kwargs = self.arguments(self.tensors(feed))
            leaves = pytree.tree_flatten_with_path(self.module(*args, **kwargs))[0]
        found: list[str] = []
        for path, leaf in leaves:
            if not isinstance(leaf, torch.Tensor):
                continue
            parts = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
            name = ".".join(parts) or "output"
            name = f"output_{name}" if parts and parts[0].isdigit() else name
            while name in found or any(name == given.name for given in self.inputs):
                name += "_out"
            found.append(name)
        if not found:
            raise ModelError("the module returns no tensor", fix="its forward must return tensors, in any nesting")
        return found


def _containers(value: Any) -> Any:
    """Dictionaries whose keys are 0, 1, ... become tuples."""
    if not isinstance(value, dict):
        return value
    inner = {name: _containers(item) for name, item in value.items()}
    if sorted(inner) == sorted(str(index) for index in range(len(inner))):
        return tuple(inner[str(index)] for index in range(len(inner)))
    return inner


def export_target(content: Any, inputs: tuple[Input, ...]) -> ExportTarget:
    """An nn.Module, a ScriptModule or an ExportedProgram with its inputs. Raises UsageError."""
    if isinstance(content, torch.export.ExportedProgram):
        return _program(content, inputs)
    if not inputs:
        raise UsageError("no --input was given", fix="give every tensor that forward takes: --input NAME:1x3x224x224")
    if isinstance(content, torch.jit.ScriptModule):
        names = tuple(argument.name for argument in content.forward.schema.arguments[1:])
        return _frozen(ExportTarget(_Scripted(content), inputs, names, any_name=False))
    parameters = inspect.signature(content.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = tuple(parameter.name for parameter in parameters if parameter.kind in named)
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    positional = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return _frozen(ExportTarget(content, inputs, names, any_name=free and not positional))


def _frozen(target: ExportTarget) -> ExportTarget:
    target.module.eval().requires_grad_(requires_grad=False)
    return target


def _program(program: Any, inputs: tuple[Input, ...]) -> ExportTarget:
    """Inputs of a torch.export program are its example inputs; --input may only rename them."""
    if program.example_inputs is None:
        raise ModelError("the program holds no example inputs", fix="save it with the PyTorch that exported it")
    leaves = [leaf for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, torch.Tensor)]
    names = [given.name for given in inputs] or list(program.graph_signature.user_inputs)
    if len(names) != len(leaves):
        raise UsageError(f"--input was given {len(names)} times, the program takes {len(leaves)}", fix="name them all")
    dynamic = _program_bounds(program)
    own = tuple(
        Input(name, tuple(leaf.shape), str(leaf.dtype).removeprefix("torch."), bounds)
        for name, leaf, bounds in zip(names, leaves, dynamic, strict=True)
    )
    for asked, given in zip(inputs, own, strict=False):
        if asked.dynamic or asked.shape != given.shape or asked.dtype != given.dtype:
            raise UsageError(
                f"--input {asked.name!r}: the program takes {'x'.join(map(str, given.shape))} {given.dtype}",
                fix="the sizes and the dynamic axes of a torch.export program are its own: give these, or no --input",
            )
    return ExportTarget(program.module(), own, (), any_name=False, program=program)


def _program_bounds(program: Any) -> list[dict[int, tuple[int, int]]]:
    """For each input tensor the axes that the program leaves open, with their bounds."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: list[dict[int, tuple[int, int]]] = []
    for name in program.graph_signature.user_inputs:
        bounds: dict[int, tuple[int, int]] = {}
        for axis, size in enumerate(getattr(values.get(name), "shape", ())):
            if isinstance(size, int):
                continue
            limits = program.range_constraints.get(size.node.expr)
            low, high = (int(limits.lower), int(min(limits.upper, 1 << 20))) if limits else (1, 1 << 20)
            bounds[axis] = (max(low, 1), high)
        if isinstance(values.get(name), torch.Tensor):
            found.append(bounds)
    return found


@contextmanager
def flattened(target: ExportTarget) -> Iterator[torch.nn.Module]:
    """A copy of the module whose forward is flat; parameters are shared with it, state is not."""
    try:
        memo: dict[int, Any] = {id(parameter): parameter for parameter in target.module.parameters()}
        module = target.module if isinstance(target.module, _Scripted) else copy.deepcopy(target.module, memo)
    except Exception:  # a user's module may refuse to be copied in any way
        module = target.module
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", target.flat(module))
    try:
        yield module
    finally:
        if own is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", own)


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as the reference gives it: half as FP32, scalars as arrays."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return np.asarray(wide.cpu().contiguous().numpy())
