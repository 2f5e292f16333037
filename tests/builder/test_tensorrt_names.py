"""Every attribute of `tensorrt` that the code names is held against the published bindings' own listing.

`tensorrt_names.json` is written by `benchmarks/tensorrt_names.py` from the wheels `tensorrt-cu12-bindings`, and of 8.6
`tensorrt-bindings`.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "trt_helper"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"bindings import .*\btrt\b", path.read_text())]
NAMES = json.loads((TESTS / "support" / "tensorrt_names.json").read_text())

# Type of each variable of these modules, by name.
VARIABLES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "made": "IOptimizationProfile",
    "runtime": "Runtime",
    "loaded": "ICudaEngine",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
}
MARK = "INetworkDefinition.mark_unfused_tensors_as_debug_tensors"
RETURNED = {"get_plugin_registry": "IPluginRegistry"}
# Of some versions, and only reached where they are: name -> what guards it in the source.
PROBED = {
    "TimingCacheKey": "_EDITABLE",
    "TimingCacheKey.parse": "_EDITABLE",
    "TimingCacheValue": "_EDITABLE",
    "ITimingCache.update": "_EDITABLE",
    "IBuilderConfig.progress_monitor": 'hasattr(config, "progress_monitor")',
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": 'hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")',
    MARK: 'hasattr(network, "mark_unfused_tensors_as_debug_tensors")',
    # Of TensorRT-RTX alone: behind `if not settings.tensorrt`.
    "ComputeCapability": "settings.tensorrt",
    "IBuilderConfig.num_compute_capabilities": "settings.tensorrt",
    "IBuilderConfig.set_compute_capability": "settings.tensorrt",
}


def used(path: Path) -> set[str]:
    """`Class` and `Class.member` for every trt.Class.member, and for members of what VARIABLES and RETURNED name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        words = ast.unparse(node.value).split(".")
        last = words[-1].removesuffix("()")
        if words == ["trt"]:
            found.add(node.attr)
        elif words[0] == "trt" and len(words) == 2:
            found.add(f"{words[1]}.{node.attr}")
        elif words == ["self", "cache"] or (len(words) == 1 and words[0] in VARIABLES and words != ["cache"]):
            found.add(f"{VARIABLES[last]}.{node.attr}")
        elif last in RETURNED:
            found.add(f"{RETURNED[last]}.{node.attr}")
    return found


USED_BY = {path: used(path) for path in MODULES}
USED = set[str]().union(*USED_BY.values())
SOURCE = "".join(path.read_text() for path in MODULES)


def has(kinds: dict[str, list[str]], name: str) -> bool:
    kind, _, member = name.partition(".")
    return kind in kinds and (not member or member in kinds[kind])


def test_the_names_are_found_in_the_source():
    some = {
        "BuilderFlag.TF32",
        "IBuilderConfig.set_timing_cache",
        "ITimingCache.update",
        "IPluginRegistry.load_library",
    }
    assert some <= USED
    assert len(USED) > 40
    assert {"build_child", "tensorrt_only"} <= {path.stem for path in MODULES}


@pytest.mark.parametrize("version", NAMES)
def test_what_is_used_without_a_question_is_in_every_version(version):
    missing = {name for name in USED - PROBED.keys() if not has(NAMES[version], name)}
    assert missing == set()


def test_what_is_probed_first_is_in_some_version_and_used():
    here_only = {name for name, guard in PROBED.items() if guard == "settings.tensorrt"}
    for name in PROBED.keys() - here_only:
        assert name in USED, f"{name} is not used any more"
        assert any(has(kinds, name) for kinds in NAMES.values()), name
    assert all(guard in SOURCE for guard in PROBED.values())


def test_tactics_can_be_excluded_from_10_8_on():
    """By the editable timing cache; a version without it is refused."""
    able = [version for version, kinds in NAMES.items() if "EDITABLE_TIMING_CACHE" in kinds["BuilderFlag"]]
    assert able == ["10.11.0.33", "10.16.1.11", "11.0.0.114", "11.4.0.106"]
    for version, kinds in NAMES.items():
        assert (version in able) == ("TimingCacheKey" in kinds and "update" in kinds["ITimingCache"])


def test_intermediate_tensors_can_be_had_where_they_can_be_marked():
    """Marked by `build_child` where the network can; switched on by `engine_child`, read by Polygraphy's listener."""
    assert MARK in USED
    assert ".unfused_tensors_debug_state = True" in (PACKAGE / "runners" / "engine_child.py").read_text()
    marked = [version for version, kinds in NAMES.items() if has(kinds, MARK)]
    assert marked == ["10.16.1.11", "11.0.0.114", "11.4.0.106"]
    for version in marked:
        assert has(NAMES[version], "IExecutionContext.unfused_tensors_debug_state")
        assert has(NAMES[version], "IDebugListener.process_debug_tensor")


def test_strong_typing_begins_with_10():
    strong = [version for version, kinds in NAMES.items() if "STRONGLY_TYPED" in kinds["NetworkDefinitionCreationFlag"]]
    assert strong == [version for version in NAMES if version != "8.6.1"]
