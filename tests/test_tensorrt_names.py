"""Every attribute of `tensorrt` that the code names is held against the published bindings' own listing.

`tensorrt_names.json` is written by `benchmarks/tensorrt_names.py` from the wheels `tensorrt-cu12-bindings`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILDER = HERE.parent / "trt_helper" / "builder"
NAMES = json.loads((HERE / "tensorrt_names.json").read_text())

# What the variables of the two modules hold, by name.
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
}
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


USED = used(BUILDER / "rtx_child.py") | used(BUILDER / "trt_only.py")


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


@pytest.mark.parametrize("version", NAMES)
def test_what_is_used_without_a_question_is_in_every_version(version):
    missing = {name for name in USED - PROBED.keys() if not has(NAMES[version], name)}
    assert missing == set()


def test_what_is_asked_for_first_is_in_some_version_and_used():
    here_only = {name for name, guard in PROBED.items() if guard == "settings.tensorrt"}
    for name in PROBED.keys() - here_only:
        assert name in USED, f"{name} is not used any more"
        assert any(has(kinds, name) for kinds in NAMES.values()), name
    source = "".join(path.read_text() for path in (BUILDER / "rtx_child.py", BUILDER / "trt_only.py"))
    assert all(guard in source for guard in PROBED.values())


def test_each_version_has_one_way_to_exclude_tactics():
    """10.0 to 10.7 the selector, from 10.8 the editable timing cache: no version is left with none."""
    for version, kinds in NAMES.items():
        selector = "IAlgorithmSelector" in kinds and "algorithm_selector" in kinds["IBuilderConfig"]
        editable = "EDITABLE_TIMING_CACHE" in kinds["BuilderFlag"] and "update" in kinds["ITimingCache"]
        assert selector or editable, version
        assert editable == ("TimingCacheKey" in kinds)


def test_strong_typing_can_be_asked_for_in_every_version():
    assert all("STRONGLY_TYPED" in kinds["NetworkDefinitionCreationFlag"] for kinds in NAMES.values())
