"""What this machine can emulate, build and run, and how to get more."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that trt-helper can do on some machines."""

    what: str
    here: bool
    with_: str  # what does it here, with its version
    more: str  # how to get it; empty where it is there


def abilities() -> list[Ability]:
    """Everything that depends on the machine, found without importing anything heavy."""
    gpu = gpu_driver()
    return [
        Ability(
            "emulate FP16 (any CPU)",
            *_package("onnxruntime", "onnxruntime-gpu", more="pip install onnxruntime"),
        ),
        Ability(
            "build engines, TensorRT-RTX (no GPU needed)",
            *_package("tensorrt_rtx", more="pip install 'trt-helper[rtx]'"),
        ),
        _needs_gpu("run engines, TensorRT-RTX (RTX GPU)", "tensorrt_rtx", "trt-helper[rtx]", gpu),
        _needs_gpu("build and run engines, TensorRT 10/11 (data-centre GPU)", "tensorrt", "trt-helper[tensorrt]", gpu),
        _needs_gpu("run FP16 on a GPU without TensorRT", "onnxruntime-gpu", "trt-helper[cuda]", gpu),
        Ability("export PyTorch checkpoints", *_package("torch", more="pip install 'trt-helper[export]'")),
        Ability("read inputs saved by Polygraphy", *_package("polygraphy", more="pip install polygraphy")),
    ]


def _package(*names: str, more: str) -> tuple[bool, str, str]:
    for name in names:
        try:
            return True, f"{name} {version(name)}", ""
        except PackageNotFoundError:
            continue
    return False, "", more


def _needs_gpu(what: str, package: str, extra: str, gpu: str) -> Ability:
    found, with_, more = _package(package, more=f"pip install '{extra}'")
    if found and gpu:
        return Ability(what, True, f"{with_}, {gpu}", "")
    missing = [more] if more else []
    if not gpu:
        missing.append("a machine with an NVIDIA GPU and its driver (libcuda.so.1 was not found here)")
    return Ability(what, False, with_, "; ".join(missing))


def gpu_driver() -> str:
    """The CUDA driver's version where a GPU can be used, else nothing. Asks the driver library itself."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
        number, count = ctypes.c_int(), ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return ""
        cuda.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return ""
    return f"CUDA driver {number.value // 1000}.{number.value % 1000 // 10}, {count.value} GPU"


def platform_line() -> str:
    """Python and operating system in one line."""
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
