# ruff: noqa: S607 - readelf, nm and gcc are where the user has them
"""The names that NVIDIA's published `tensorrt` bindings have, version by version -> tests/tensorrt_names.json.

    python benchmarks/tensorrt_names.py [VERSION ...]

The wheels `tensorrt-cu12-bindings` (PyPI; `tensorrt-bindings` of 8.6) hold one extension module each. TensorRT's own
libraries are not needed to look at its classes: empty libraries with the same names and entry points are loaded in
their place. Needs gcc, binutils, and to be run by a Python that the wheels are for. Names of classes and members are
all that is kept.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = ("8.6.1", "10.0.1", "10.7.0", "10.11.0.33", "10.16.1.11", "11.0.0.114", "11.4.0.106")
CLASSES = frozenset(
    {
        "Builder",
        "BuilderFlag",
        "DataType",
        "EngineInspector",
        "HardwareCompatibilityLevel",
        "IAlgorithm",
        "IAlgorithmContext",
        "IAlgorithmSelector",
        "IAlgorithmVariant",
        "IBuilderConfig",
        "ICudaEngine",
        "IDebugListener",
        "IExecutionContext",
        "IHostMemory",
        "ILayer",
        "ILogger",
        "IOptimizationProfile",
        "IPluginRegistry",
        "IProgressMonitor",
        "INetworkDefinition",
        "ITensor",
        "ITimingCache",
        "LayerInformationFormat",
        "LayerType",
        "Logger",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "ParserError",
        "ProfilingVerbosity",
        "Runtime",
        "Severity",
        "TimingCacheKey",
        "TimingCacheValue",
    }
)
ENTRY = r" U ((?:create|get|init)\w*(?:Infer|Onnx|Plugin)\w*|_ZN\d+nv(?:caffe|uff)parser\w+)$"  # C++ names up to 8.6
TARGET = Path(__file__).parents[1] / "tests" / "support" / "tensorrt_names.json"


def main() -> None:
    if sys.argv[1:2] == ["--of"]:
        print(json.dumps(names(Path(sys.argv[2]))))
        return
    found = {}
    for version in sys.argv[1:] or VERSIONS:
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
            package = "tensorrt-bindings" if version.startswith("8.") else "tensorrt-cu12-bindings"
            subprocess.run([*pip, f"{package}=={version}"], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                library = wheel.extract("tensorrt_bindings/tensorrt.so", folder)
            asked = [sys.executable, __file__, "--of", library]  # one process each: they would share symbols
            found[version] = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    lines = [
        f'"{version}": {{\n' + ",\n".join(f'"{kind}": {json.dumps(members)}' for kind, members in kinds.items()) + "}"
        for version, kinds in found.items()
    ]
    TARGET.write_text("{" + ",\n".join(lines) + "}\n")


def names(library: Path) -> dict[str, list[str]]:
    """Public members of each class of CLASSES that the bindings have; those of enumerations included."""
    with tempfile.TemporaryDirectory() as folder:
        needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        symbols = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True, check=True).stdout
        entries = re.findall(ENTRY, symbols, re.MULTILINE)
        source = Path(folder, "empty.c")
        source.write_text("".join(f"int {entry}(void) {{ return 0; }}\n" for entry in entries))
        for name in re.findall(r"\[(libnv[^]]+)\]", needed):
            empty = Path(folder, name)
            subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", empty, source], check=True)
            ctypes.CDLL(str(empty), ctypes.RTLD_GLOBAL)
        spec = importlib.util.spec_from_file_location("tensorrt", library)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    kinds = {name: getattr(module, name) for name in sorted(CLASSES) if hasattr(module, name)}
    return {name: sorted(m for m in dir(kind) if not m.startswith("_")) for name, kind in kinds.items()}


if __name__ == "__main__":
    main()
