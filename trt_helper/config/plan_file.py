"""Read, check and write fp32_layers.yaml, the config that stores a plan.

A file written by hand with only a few of the keys is valid. DESIGN.md section 5 lists them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from trt_helper.errors import ConfigError, UsageError, nearest
from trt_helper.system.files import tidy, write_atomically
from trt_helper.values import REWRITE_KINDS, LayerName, Rewrite, Statistic, Tolerance

KEYS = ("model", "FP32_LAYERS_FOR_FP16", "TRT_EXCLUDE_TACTIC", "cures", "atol", "rtol", "check-error-stat", "evidence")
TACTIC_KEYS = ("layer", "tactic", "kernel", "tensorrt", "gpu")
LARGEST_FILE = 8 << 20  # bytes: enough for some 150,000 layer names
HEADER = "# Layers that stay in FP32 when the model is built in FP16. Written by trt-helper; made to be edited.\n"


@dataclass(frozen=True)
class Config:
    """The contents of a config file."""

    path: Path | None = None  # of the file itself
    model: Path | None = None  # relative to the working directory; the file has it relative to its own folder
    sha256: str = ""  # of the model that the plan was made for, empty if the file does not have it
    fp32_layers: tuple[LayerName, ...] = ()
    exclude_tactics: tuple[Mapping[str, Any], ...] = ()  # mappings with some of TACTIC_KEYS
    rewrites: tuple[Rewrite, ...] = ()  # of the graph, applied before the plan; from the key `cures`
    bf16_layers: tuple[LayerName, ...] = ()  # layers that compute in BF16; also from the key `cures`
    tolerance: Tolerance = field(default_factory=Tolerance)
    evidence: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> Config:
    """Read and check the config file `path`.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong. The message names it.
    """
    data = _parse(path)
    for key in data:
        if key not in KEYS:
            near = nearest(str(key), KEYS)
            raise ConfigError(
                f"{path}: unknown key {_shown(key)}",
                fix=f"did you mean {near!r}?" if near else f"the keys are: {', '.join(KEYS)}",
            )
    model, sha256 = _model(data.get("model"), path)
    rewrites = _rewrites(data.get("cures"), path)
    return Config(
        path=path,
        model=model,
        sha256=sha256,
        fp32_layers=_names(data.get("FP32_LAYERS_FOR_FP16"), path),
        exclude_tactics=_tactics(data.get("TRT_EXCLUDE_TACTIC"), path),
        rewrites=tuple(rewrite for rewrite in rewrites if rewrite.kind != "bf16"),
        bf16_layers=tuple(rewrite.name for rewrite in rewrites if rewrite.kind == "bf16"),
        tolerance=_tolerance(data, path),
        evidence=_mapping(data.get("evidence"), "evidence", path),
    )


def _parse(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {fault}", fix="make it with `trt-helper locate MODEL.onnx -o FILE.yaml`")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} is too large for a config", fix="give the path of a fp32_layers.yaml")
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error
    try:
        data = _Loader(text.decode()).get_single_data()
    except Exception as error:  # PyYAML does not only raise its own errors: `!!int x` is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        why = str(getattr(error, "problem", None) or type(error).__name__)
        raise ConfigError(f"{path} is not valid YAML{where}: {why}", fix="see configs/example.yaml") from error
    if data is None:
        return {}
    return _mapping(data, "the file", path)


class _Loader(yaml.SafeLoader):
    """Refuses aliases, with which a few lines can expand to gigabytes, and keys that occur twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "aliases are not allowed here", self.peek_event().start_mark)  # type: ignore[no-untyped-call]  # PyYAML's
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.update([key.value] if isinstance(key, yaml.ScalarNode) else ())
        return super().construct_mapping(node, deep)


def pin_lines(path: Path) -> dict[LayerName, int]:
    """The line number, from 1, of each pin in a valid config file."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else ()
    lists = [value.value for key, value in pairs if key.value == "FP32_LAYERS_FOR_FP16"]
    return {name.value: name.start_mark.line + 1 for names in lists for name in names}


def _shown(value: object) -> str:
    """A wrong value as text for a message, at most 80 characters."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python refuses to convert an integer of some thousand digits to text
        return "a huge number"


def _mapping(value: object, key: str, path: Path) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: {key} must be a mapping, not {type(value).__name__}", fix="see configs/example.yaml"
        )
    return value


def _model(value: object, path: Path) -> tuple[Path | None, str]:
    """The path and the sha256 from `model: {path: ..., sha256: ...}`, or from a path alone."""
    if isinstance(value, str):
        value = {"path": value}
    entry = _mapping(value, "model", path)
    for key in entry:
        if key not in ("path", "sha256"):
            raise ConfigError(f"{path}: unknown key 'model.{key}'", fix="the keys are: path, sha256")
    for key, text in entry.items():
        if not isinstance(text, str):
            raise ConfigError(f"{path}: model.{key} must be text, not {_shown(text)}", fix="put it in quotes")
    model = entry.get("path")
    return (path.parent / model if model else None), entry.get("sha256", "")


def _names(value: object, path: Path) -> tuple[LayerName, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(
            f"{path}: FP32_LAYERS_FOR_FP16 must be a list of layer names, not {_shown(value)}",
            fix="write one name a line: `- /norm/Pow`",
        )
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(
                f"{path}: FP32_LAYERS_FOR_FP16 holds {_shown(name)}, which is no layer name",
                fix="a name that reads as a number or a date must be in quotes",
            )
    return tuple(dict.fromkeys(value))


def _tactics(value: object, path: Path) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(f"{path}: TRT_EXCLUDE_TACTIC must be a list", fix="one mapping each: {layer, tactic, ...}")
    for entry in value:
        fields = _mapping(entry, "an entry of TRT_EXCLUDE_TACTIC", path)
        unknown = [key for key in fields if key not in TACTIC_KEYS]
        if unknown or (wrong := _tactic_fault(fields)):
            wrong = f"has the unknown key {_shown(unknown[0])}" if unknown else wrong
            raise ConfigError(
                f"{path}: an entry of TRT_EXCLUDE_TACTIC {wrong}",
                fix=f"its keys are: {', '.join(TACTIC_KEYS)}",
            )
    return tuple(value)


def _tactic_fault(fields: Mapping[str, Any]) -> str:
    """The fault of an entry of TRT_EXCLUDE_TACTIC, as the end of a sentence; empty if there is none."""
    if not isinstance(fields.get("layer"), str):
        return "names no layer"
    tactic = fields.get("tactic")
    if tactic is None and not fields.get("kernel"):
        return f"says neither tactic nor kernel of layer {_shown(fields['layer'])}"
    try:
        int(str(0 if tactic is None else tactic), 0)
    except ValueError:
        return f"has the tactic {_shown(tactic)}, which is no number such as 0x665ded9abbf88"
    texts = (fields[key] for key in ("kernel", "tensorrt", "gpu") if key in fields)
    return "" if all(isinstance(text, str) for text in texts) else "has a kernel, tensorrt or gpu that is no text"


def _rewrites(value: object, path: Path) -> tuple[Rewrite, ...]:
    """The rewrites, each from {KIND: NAME}, {norms: LAYER, as: OPERATOR} or {constants: TENSOR, as: NUMBER}."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(f"{path}: cures must be a list", fix="one mapping each, such as {bf16: LAYER}")
    found = []
    for entry in value:
        fields = dict(_mapping(entry, "an entry of cures", path))
        op = fields.pop("as", "")
        if isinstance(op, float) and "constants" in fields:  # a number without quotes
            op = f"{op:.4g}"
        kind, name = next(iter(fields.items()), ("", ""))
        sound = len(fields) == 1 and kind in REWRITE_KINDS[1:] and isinstance(name, str) and isinstance(op, str)
        if not sound or (kind == "norms" and not op) or (op and kind not in ("norms", "constants")):
            raise ConfigError(
                f"{path}: cures holds {_shown(entry)}",
                fix="an entry is {norms: LAYER, as: OPERATOR}, or one of constants, logs, rows, bf16: {bf16: LAYER};"
                " an epsilon that was raised is {constants: TENSOR, as: NUMBER}",
            )
        found.append(Rewrite(kind, name, op))
    return tuple(found)


def _tolerance(data: Mapping[str, Any], path: Path) -> Tolerance:
    """The tolerance. `atol` and `rtol` are one number, or a mapping from output to number ('' for all others)."""
    default = Tolerance()
    stat = data.get("check-error-stat", default.stat.value)
    try:
        statistic = Statistic(stat)
    except ValueError:
        known = ", ".join(s.value for s in Statistic)
        raise ConfigError(f"{path}: check-error-stat is {_shown(stat)}", fix=f"it must be one of: {known}") from None
    atol, rtol = (_numbers(data.get(key), key, getattr(default, key), path) for key in ("atol", "rtol"))
    outputs = dict.fromkeys([name for name in (*atol, *rtol) if name])
    return Tolerance(
        atol=atol[""],
        rtol=rtol[""],
        stat=statistic,
        per_output={name: (atol.get(name, atol[""]), rtol.get(name, rtol[""])) for name in outputs},
    )


def _numbers(value: object, key: str, default: float, path: Path) -> dict[str, float]:
    entries = value if isinstance(value, dict) else {"": default if value is None else value}
    numbers = {"": default}
    for name, number in entries.items():
        numbers[str(name)] = _number(number)
        if not 0 <= numbers[str(name)] < math.inf:
            raise ConfigError(
                f"{path}: {key} is {_shown(number)}", fix="it must be a number of at least 0, such as 0.001"
            )
    return numbers


def _number(value: object) -> float:
    """`value` as a number, or NaN. A text is converted, because YAML reads 1e-3, without a dot, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def write_config(config: Config, path: Path) -> None:
    """Write `config` to `path`, so that `read_config` gives it back.

    Raises:
        OutputError: The file cannot be written.
    """
    data: dict[str, Any] = {}
    if config.model is not None:
        data["model"] = {"path": seen_from(path.parent, config.model), "sha256": config.sha256}
    data["FP32_LAYERS_FOR_FP16"] = list(config.fp32_layers)
    data["TRT_EXCLUDE_TACTIC"] = [dict(entry) for entry in config.exclude_tactics]
    if config.rewrites or config.bf16_layers:
        rewrites = [
            {rewrite.kind: rewrite.name, **({"as": rewrite.op} if rewrite.op else {})} for rewrite in config.rewrites
        ]
        data["cures"] = [*rewrites, *({"bf16": name} for name in config.bf16_layers)]
    data |= tolerance_yaml(config.tolerance)
    if config.evidence:
        data["evidence"] = dict(config.evidence)
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    write_atomically(path, (HEADER + text).encode())


def tolerance_yaml(tolerance: Tolerance) -> dict[str, Any]:
    """A tolerance under the keys of the file: atol, rtol and check-error-stat."""
    data: dict[str, Any] = {}
    for index, key in enumerate(("atol", "rtol")):
        own = {name: pair[index] for name, pair in tolerance.per_output.items()}
        common = getattr(tolerance, key)
        data[key] = {"": common, **own} if own else common
    return {**data, "check-error-stat": tolerance.stat.value}


class _Dumper(yaml.SafeDumper):
    """Writes numbers so that YAML reads them as numbers (1.0e-05, not 1e-05), and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Put texts that are not printable in double quotes: PyYAML 6.0.3 loses a lone U+0085 in other styles."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def seen_from(folder: Path, path: Path) -> str:
    """`path` relative to `folder`, with slashes. Paths in a config are relative to its folder."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def require_same_model(config: Config, sha256: str, model: Path) -> None:
    """Check that the config was made for this model, if it has a sha256.

    Args:
        config: The config.
        sha256: Of the model.
        model: Its path, for the message.

    Raises:
        ConfigError: The config was made for another model.
    """
    if config.sha256 and config.sha256 != sha256:
        raise ConfigError(
            f"{config.path} was made for another model: {model} has sha256 {sha256[:12]}, not {config.sha256[:12]}",
            fix="run `trt-helper locate` on the new model, or remove `sha256` from the file to use the plan as it is",
        )


def model_path(config: Config, given: Path | None) -> Path:
    """The model to use: the one on the command line, else the one that the config names.

    Raises:
        ConfigError: Neither names a model.
    """
    chosen = given or config.model
    if chosen is None:
        raise ConfigError(f"{config.path} names no model", fix="give it: trt-helper ... MODEL.onnx --config FILE.yaml")
    return tidy(chosen)


def per_output(texts: Sequence[str], option: str, default: float) -> dict[str, float]:
    """The values of --atol or --rtol by output name. The key '' stands for all outputs that are not named.

    Args:
        texts: Each is `1e-3` or `OUTPUT:1e-2`.
        option: The name of the option, for the message.
        default: For the key '', if no text gives it.

    Raises:
        UsageError: A text has no number of at least 0.
    """
    numbers = {"": default}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            numbers[name] = float(number)
        except ValueError:
            numbers[name] = math.nan
        if not 0 <= numbers[name] < math.inf:
            raise UsageError(f"{option} {text!r} is no tolerance", fix=f"such as {option} 1e-3 or {option} OUTPUT:1e-2")
    return numbers
