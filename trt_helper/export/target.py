"""Define the export target: a module plus its inputs, callable with a flat list of tensors.

ONNX has only flat lists of tensors. Dictionaries and tuples of inputs are built from the input names (see `Input`);
outputs are flattened and named by their place: `{"boxes": ..., "scores": (a, b)}` gives `boxes`, `scores.0` and
`scores.1`.
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

SCRIPT = "script"  # attribute of the wrapper that has the ScriptModule
Flat = Callable[..., tuple[torch.Tensor, ...]]
RUN = "check --input: names, shapes and types must be what forward takes"


class _Scripted(torch.nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """Wraps a ScriptModule as an ordinary module, whose forward can be replaced."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.script(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class ExportTarget:
    """The module to export and its inputs.

    Attributes:
        module: The module, in evaluation mode, without gradients.
        inputs: The input tensors.
        parameters: Names of forward's parameters.
        any_name: Whether forward accepts **kwargs, so that every input can be passed by name.
        program: The ExportedProgram, if the checkpoint was a torch.export program.
    """

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    parameters: tuple[str, ...]
    any_name: bool
    program: Any = None

    def flat(self, module: torch.nn.Module) -> Flat:
        """Return a function from the input tensors, in order, to the output tensors of `module`'s forward."""
        forward = module.forward

        def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            args, kwargs = self.arguments(tensors)
            return tuple(
                leaf for leaf in pytree.tree_leaves(forward(*args, **kwargs)) if isinstance(leaf, torch.Tensor)
            )

        return run

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and named arguments of forward for the input tensors."""
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
        """Run the module without gradients and return its output tensors.

        Raises:
            ModelError: The module raised an exception; the message shows the user's frames.
        """
        with user_code("the module", fix=RUN), torch.no_grad():
            return [out.detach().clone() for out in self.flat(self.module)(*self.tensors(feed))]

    def run_in_fp64(self, feed: dict[str, Array]) -> list[torch.Tensor]:
        """Run a copy of the module in FP64, as `run` does.

        Raises:
            ModelError: The module cannot be copied or does not run in FP64; a torch.export program never does.
        """
        if self.program is not None:
            raise ModelError("a torch.export program has fixed types", fix="export it from the module")
        try:
            module = copy.deepcopy(self.module).double()
        except Exception as error:  # whatever a module's own copying raises
            raise ModelError("the module cannot be copied", fix="none") from error
        tensors = [one.double() if one.is_floating_point() else one for one in self.tensors(feed)]
        with user_code("the module in FP64", fix=RUN), torch.no_grad():
            return [out.detach() for out in self.flat(module)(*tensors)]

    def tensors(self, feed: dict[str, Array]) -> tuple[torch.Tensor, ...]:
        """Return copies of the arrays as tensors, in the order of the inputs: a module may modify its inputs."""
        return tuple(torch.from_numpy(feed[given.name].copy()) for given in self.inputs)

    def output_names(self, feed: dict[str, Array]) -> list[str]:
        """Return a name for each output tensor, from the keys and indices at which the module returns it.

        Raises:
            ModelError: The module raised an exception or returns no tensor.
        """
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
    """Turn dictionaries whose keys are 0, 1, ... into tuples."""
    if not isinstance(value, dict):
        return value
    inner = {name: _containers(item) for name, item in value.items()}
    if sorted(inner) == sorted(str(index) for index in range(len(inner))):
        return tuple(inner[str(index)] for index in range(len(inner)))
    return inner


def export_target(content: Any, inputs: tuple[Input, ...]) -> ExportTarget:
    """Return the export target for a module and its inputs.

    Args:
        content: An nn.Module, a ScriptModule or an ExportedProgram.
        inputs: The inputs; optional for an ExportedProgram, which has its own.

    Raises:
        UsageError: Inputs are missing or do not fit the program.
        ModelError: The program has no example inputs.
    """
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
    """Return the target of a torch.export program: its inputs are its example inputs, --input can only rename them."""
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
    for requested, given in zip(inputs, own, strict=False):
        if requested.dynamic or requested.shape != given.shape or requested.dtype != given.dtype:
            raise UsageError(
                f"--input {requested.name!r}: the program takes {'x'.join(map(str, given.shape))} {given.dtype}",
                fix="the sizes and the dynamic axes of a torch.export program are its own: give these, or no --input",
            )
    return ExportTarget(program.module(), own, (), any_name=False, program=program)


def _program_bounds(program: Any) -> list[dict[int, tuple[int, int]]]:
    """Return for each input tensor the dynamic axes of the program with their bounds."""
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
    """Yield a copy of the module with a flat forward; it shares the parameters, but not the state."""
    try:
        memo: dict[int, Any] = {id(parameter): parameter for parameter in target.module.parameters()}
        module = target.module if isinstance(target.module, _Scripted) else copy.deepcopy(target.module, memo)
    except Exception:  # copying a user's module may raise anything
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
    """Return a tensor as a numpy array, as the reference has it: FP16 and BF16 as FP32, scalars as arrays."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return np.asarray(wide.cpu().contiguous().numpy())
