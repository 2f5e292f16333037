"""Read the versions of packages from their metadata, without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import trt_helper


def versions() -> dict[str, str]:
    """Return the versions that FP32 references and emulated FP16 outputs depend on, by package."""
    return {"trt-helper": trt_helper.__version__, "onnxruntime": installed_version("onnxruntime", "onnxruntime-gpu")[1]}


def installed_version(*packages: str) -> tuple[str, str]:
    """Return (package, version) of the first of `packages` that is installed; ("", "") if none is."""
    for package in packages:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return "", ""
