"""Versions of the packages that results depend on, read from their metadata: nothing is imported for it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import trt_helper


def versions() -> dict[str, str]:
    """The versions of trt-helper and ONNX Runtime, on which FP32 references and emulated FP16 outputs depend."""
    return {"trt-helper": trt_helper.__version__, "onnxruntime": installed_version("onnxruntime", "onnxruntime-gpu")[1]}


def installed_version(*packages: str) -> tuple[str, str]:
    """(package, version) of the first of `packages` that is installed; ("", "") where none is."""
    for package in packages:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return "", ""
