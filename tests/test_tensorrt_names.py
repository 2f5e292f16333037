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

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "trt_helper"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"bindings import .*\btrt\b", path.read_text())]
WEAK = PACKAGE / "builder" / "weak.py"
NAMES = json.loads((HERE / "tensorrt_names.json").read_text())

WEAKLY_TYPED = [version for version, kinds in NAMES.items() if "FP16" in kinds["BuilderFlag"]]

# What the variables of these modules hold, by name.
HELD = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "made": "IOptimizationProfile",
    "runtime": "Runtime",
    "loaded": "ICudaEngine",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
    "choice": "IAlgorithm",
    "variant": "IAlgorithmVariant",
    "context": "IAlgorithmContext",
    "layer": "ILayer",
    "tensor": "ITensor",
}
MARK = "INetworkDefinition.mark_unfused_tensors_as_debug_tensors"
RETURNED = {"get_plugin_registry": "IPluginRegistry"}
# Of some versions, and only reached where they are: name -> what guards it in the source.
PROBED = {
    "IAlgorithmSelector": 'hasattr(trt, "IAlgorithmSelector")',
    "IAlgorithm.algorithm_variant": "IAlgorithmSelector",
    "IAlgorithmVariant.tactic": "IAlgorithmSelector",
    "IAlgorithmVariant.implementation": "IAlgorithmSelector",
    "IAlgorithmContext.name": "IAlgorithmSelector",
    "IBuilderConfig.algorithm_selector": "IAlgorithmSelector",
    "BuilderFlag.REJECT_EMPTY_ALGORITHMS": "IAlgorithmSelector",
    "TimingCacheKey": "_EDITABLE",
    "TimingCacheKey.parse": "_EDITABLE",
    "TimingCacheValue": "_EDITABLE",
    "ITimingCache.update": "_EDITABLE",
    "IBuilderConfig.progress_monitor": 'hasattr(config, "progress_monitor")',
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": 'hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")',
    MARK: 'hasattr(network, "mark_unfused_tensors_as_debug_tensors")',
    "BuilderFlag.BF16": 'hasattr(trt.BuilderFlag, "BF16")',
    # Of TensorRT-RTX alone: behind `if not settings.tensorrt`.
    "ComputeCapability": "settings.tensorrt",
    "IBuilderConfig.num_compute_capabilities": "settings.tensorrt",
    "IBuilderConfig.set_compute_capability": "settings.tensorrt",
}


def used(path: Path) -> set[str]:
    """`Class` and `Class.member` for every trt.Class.member, and for the members of what HELD and RETURNED name."""
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
        elif words == ["self", "cache"] or (len(words) == 1 and words[0] in HELD and words != ["cache"]):
            found.add(f"{HELD[last]}.{node.attr}")
        elif last in RETURNED:
            found.add(f"{RETURNED[last]}.{node.attr}")
    return found


USED_BY = {path: used(path) for path in MODULES}
USED = set[str]().union(*USED_BY.values())
EVERYWHERE = set[str]().union(*(names for path, names in USED_BY.items() if path != WEAK))
SOURCE = "".join(path.read_text() for path in MODULES)


def has(kinds: dict[str, list[str]], name: str) -> bool:
    kind, _, member = name.partition(".")
    return kind in kinds and (not member or member in kinds[kind])


def test_the_names_are_found_in_the_source():
    ways = {
        "BuilderFlag.TF32",
        "IBuilderConfig.set_timing_cache",
        "ITimingCache.update",
        "IPluginRegistry.load_library",
    }
    assert ways <= USED
    assert len(USED) > 40
    assert {"rtx_child", "trt_only", "weak"} <= {path.stem for path in MODULES}


@pytest.mark.parametrize("version", NAMES)
def test_what_is_used_without_a_question_is_in_every_version(version):
    missing = {name for name in EVERYWHERE - PROBED.keys() if not has(NAMES[version], name)}
    assert missing == set()


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_what_weak_typing_uses_is_in_every_version_that_has_it(version):
    ways = {"ILayer.precision", "ILayer.precision_is_set", "ILayer.set_output_type", "ITensor.is_execution_tensor"}
    assert ways <= USED_BY[WEAK]
    missing = {name for name in USED_BY[WEAK] - PROBED.keys() if not has(NAMES[version], name)}
    assert missing == set()


def test_weak_typing_ends_with_10():
    assert [version.partition(".")[0] for version in NAMES] == ["8", "10", "10", "10", "10", "11", "11"]
    assert [version.partition(".")[0] for version in WEAKLY_TYPED] == ["8", "10", "10", "10", "10"]
    for version, kinds in NAMES.items():
        assert ("precision" in kinds["ILayer"]) == (version in WEAKLY_TYPED)
        assert ("OBEY_PRECISION_CONSTRAINTS" in kinds["BuilderFlag"]) == (version in WEAKLY_TYPED)


def test_every_member_that_weak_typing_names_in_a_string_is_there():
    """Types of layers may be newer than 8.6: they are only compared with. The others are read where they are there."""
    named = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', WEAK.read_text())) - {"FP32"}  # our own word
    kinds = ("BuilderFlag", "DataType", "LayerType", "NetworkDefinitionCreationFlag")
    known = {member for version in WEAKLY_TYPED for kind in kinds for member in NAMES[version][kind]}
    assert {"OBEY_PRECISION_CONSTRAINTS", "FLOAT", "CONSTANT", "SHUFFLE", "EXPLICIT_BATCH"} <= named <= known


def test_what_is_asked_for_first_is_in_some_version_and_used():
    here_only = {name for name, guard in PROBED.items() if guard == "settings.tensorrt"}
    for name in PROBED.keys() - here_only:
        assert name in USED, f"{name} is not used any more"
        assert any(has(kinds, name) for kinds in NAMES.values()), name
    assert all(guard in SOURCE for guard in PROBED.values())


def test_each_version_has_one_way_to_exclude_tactics():
    """10.0 to 10.7 the selector, from 10.8 the editable timing cache: no version is left with none."""
    for version, kinds in NAMES.items():
        selector = "IAlgorithmSelector" in kinds and "algorithm_selector" in kinds["IBuilderConfig"]
        editable = "EDITABLE_TIMING_CACHE" in kinds["BuilderFlag"] and "update" in kinds["ITimingCache"]
        assert selector or editable, version
        assert editable == ("TimingCacheKey" in kinds)


def test_what_is_between_kernels_can_be_heard_where_it_can_be_marked():
    """Marked by `rtx_child` where the network can; switched on by `engine_child`, heard by Polygraphy's listener."""
    assert MARK in USED
    assert ".unfused_tensors_debug_state = True" in (PACKAGE / "runners" / "engine_child.py").read_text()
    marked = [version for version, kinds in NAMES.items() if has(kinds, MARK)]
    assert marked == ["10.16.1.11", "11.0.0.114", "11.4.0.106"]
    for version in marked:
        assert has(NAMES[version], "IExecutionContext.unfused_tensors_debug_state")
        assert has(NAMES[version], "IDebugListener.process_debug_tensor")


def test_each_version_can_be_asked_for_strong_typing_or_for_weak():
    strong = [version for version, kinds in NAMES.items() if "STRONGLY_TYPED" in kinds["NetworkDefinitionCreationFlag"]]
    assert strong == [version for version in NAMES if version != "8.6.1"]
    assert {*strong, *WEAKLY_TYPED} == set(NAMES)
