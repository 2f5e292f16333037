"""Find out what this machine can emulate, build and run, and how to get the rest."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass

from trt_helper.system.versions import installed_version

# tensorrt_rtx.ComputeCapability of TensorRT-RTX 1.7.1; there is no 9.0 and no 10.0.
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that trt-helper can do on some machines."""

    what: str  # for the user
    here: bool
    with_: str  # the package that does it here, with its version
    more: str  # how to get it; empty if it is here


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU according to the CUDA driver. Without a usable GPU, `name` is empty and `missing` is the reason."""

    name: str = ""
    capability: str = ""  # compute capability, "8.6"
    driver: str = ""  # newest CUDA version that the driver supports, "12.4"
    missing: str = ""


def abilities() -> list[Ability]:
    """Return every ability that depends on the machine; no heavy package is imported."""
    gpu = find_gpu()
    return [
        Ability(
            "emulate FP16 (any CPU)",
            *_package("onnxruntime", "onnxruntime-gpu", more="pip install onnxruntime"),
        ),
        Ability(
            "build engines, TensorRT-RTX (no GPU needed)",
            *_package("tensorrt_rtx", more="pip install 'trt-helper[rtx]'"),
        ),
        _needs_gpu("run engines, TensorRT-RTX (RTX GPU)", ("tensorrt_rtx",), "trt-helper[rtx]", gpu, rtx=True),
        _needs_gpu("build and run engines, TensorRT 10/11 (data-centre GPU)", TENSORRT, "trt-helper[tensorrt]", gpu),
        _needs_gpu("run FP16 on a GPU without TensorRT", ("onnxruntime-gpu",), "trt-helper[cuda]", gpu),
        Ability("export PyTorch checkpoints", *_package("torch", more="pip install 'trt-helper[export]'")),
        Ability("judge plans on a Ray cluster", *_package("ray", more="pip install 'trt-helper[ray]'")),
        Ability("read inputs saved by Polygraphy", *_package("polygraphy", more="pip install polygraphy")),
    ]


def _package(*names: str, more: str) -> tuple[bool, str, str]:
    package, version = installed_version(*names)
    return (True, f"{package} {version}", "") if package else (False, "", more)


def _needs_gpu(what: str, packages: tuple[str, ...], extra: str, gpu: Gpu, *, rtx: bool = False) -> Ability:
    found, with_, more = _package(*packages, more=f"pip install '{extra}'")
    missing = [more] if more else []
    if gpu.missing:
        missing.append(gpu.missing)
    elif rtx and gpu.capability not in RTX_COMPUTE_CAPABILITIES:
        known = ", ".join(RTX_COMPUTE_CAPABILITIES)
        missing.append(f"a GPU of compute capability {known}: this one, {gpu.name}, has {gpu.capability}")
    if missing:
        return Ability(what, False, with_, "; ".join(missing))
    return Ability(what, found, f"{with_}, {gpu.name} ({gpu.capability}), CUDA driver {gpu.driver}", "")


def find_gpu() -> Gpu:
    """Return the first GPU, as the driver library describes it."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Gpu(missing=f"a machine with an NVIDIA GPU and its driver ({library} was not found here)")
    try:
        return _first_gpu(cuda)
    except AttributeError as error:
        return Gpu(missing=f"a newer NVIDIA driver ({library} has no {str(error).rpartition(' ')[2]})")


def _first_gpu(cuda: ctypes.CDLL) -> Gpu:
    if status := cuda.cuInit(0):
        return Gpu(missing=f"an NVIDIA GPU that can be used (the driver is here; cuInit gives error {status})")
    number, count, device, major, minor = (ctypes.c_int() for _ in range(5))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return Gpu(missing="an NVIDIA GPU (its driver is here, and finds none)")
    name = ctypes.create_string_buffer(256)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    driver = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", driver)


def platform_line() -> str:
    """Return Python's version and the operating system in one line."""
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
