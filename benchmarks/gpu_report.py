"""The summary and the Markdown page of the figures that `gpu.py` measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Figures = dict[str, Any]
NEAR = 2  # an error ratio within this factor of 1 is near the tolerance
SAME_REFERENCE = 0.1  # of the tolerance: FP32 outputs that are further apart make a model's comparison doubtful


def pairs(found: Figures) -> Iterator[tuple[Figures, Figures, str, str]]:
    """Every model, plan, mode of the device and emulator."""
    for model in found["models"]:
        for plan in model["plans"]:
            for mode in plan["measured"]:
                for emulator in plan["emulated"]:
                    yield model, plan, mode, emulator


def figures(found: Figures) -> Figures:
    """The shares of equal verdicts and of layers within a factor of 2, by mode and emulator, and the contradictions."""
    shares: dict[str, Figures] = {}
    contradictions = []
    for model, plan, mode, emulator in pairs(found):
        device, emulated = plan["measured"][mode], plan["emulated"][emulator]
        layers = plan["layers"].get(mode, {}).get(emulator, {"compared": 0, "within_2": 0})
        new = {"verdicts": 0, "equal": 0, "compared": 0, "within_2": 0, "in_fp32": 0}
        of = shares.setdefault(f"{mode}, {emulator}", new)
        equal = device["verdict"] == emulated["verdict"]
        of["verdicts"] += 1
        of["equal"] += equal
        of["compared"] += layers["compared"]
        of["within_2"] += layers["within_2"]
        of["in_fp32"] += device.get("in_fp32", 0)
        if not equal:
            ratios = (device["ratio"], emulated["ratio"])
            contradictions.append(
                {
                    "model": model["name"],
                    "plan": plan["plan"],
                    "mode": mode,
                    "emulator": emulator,
                    "device": device,
                    "emulated": emulated,
                    "near": all(1 / NEAR <= ratio <= NEAR for ratio in ratios),
                    "same_reference": model["fp32_difference"] <= SAME_REFERENCE,
                    "layer": layers.get("layer", ""),
                    "largest_factor": layers.get("largest_factor"),
                }
            )
    run, not_run = len(found["models"]), len(found["not_run"])
    return {"run": run, "tried": run + not_run, "shares": shares, "contradictions": contradictions}


def markdown(found: Figures) -> str:
    """The page."""
    versions = ("device", "torch", "cuda", "driver", "onnxruntime", "numpy", "date")
    lines = ["# The emulator against a device", ""]
    lines += [", ".join(f"{name} {found[name]}" for name in versions if found[name]) + f"; {found['wall']:.0f} s", ""]
    return "\n".join([*lines, *_summary(found), *_models(found), *_times(found), *_rest(found)]) + "\n"


def _summary(found: Figures) -> list[str]:
    summary = found["summary"]
    lines = [f"{summary['run']} of {summary['tried']} models ran.", ""]
    lines += [
        "| device, emulator | equal verdicts | layers within a factor of 2 | layers in FP32 for want of a kernel |"
    ]
    lines += ["|---|---|---|---|"]
    for name, of in summary["shares"].items():
        equal, within = _share(of["equal"], of["verdicts"]), _share(of["within_2"], of["compared"])
        lines.append(f"| {name} | {equal} | {within} | {of['in_fp32']} |")
    lines += ["", "## Contradictions", ""]
    for one in summary["contradictions"]:
        device, emulated = _judged(one["device"]), _judged(one["emulated"])
        doubt = "" if one["same_reference"] else "; FP32 differs as well"
        near = "; both near the tolerance" if one["near"] else ""
        layer = f"; largest factor {_number(one['largest_factor'])} at {one['layer']}" if one["layer"] else ""
        sides = f"{one['mode']} {device}, {one['emulator']} {emulated}"
        lines.append(f"- {one['model']}, {one['plan']}: {sides}{layer}{near}{doubt}")
    return [*lines, *([] if summary["contradictions"] else ["None."]), ""]


def _models(found: Figures) -> list[str]:
    head = (
        "model",
        "plan",
        "pins",
        "device",
        "on the device",
        "emulator",
        "emulated",
        "within 2",
        "largest factor",
        "at",
    )
    lines = ["## Models", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for model, plan, mode, emulator in pairs(found):
        layers = plan["layers"].get(mode, {}).get(emulator, {"compared": 0, "within_2": 0})
        judged = _judged(plan["measured"][mode]), emulator, _judged(plan["emulated"][emulator])
        share = _share(layers["within_2"], layers["compared"])
        factor, at = _number(layers.get("largest_factor")), layers.get("layer", "")
        cells = (model["name"], plan["plan"], plan["pins"], mode, *judged, share, factor, at)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def _times(found: Figures) -> list[str]:
    lines = ["## Times of one inference", "", "FP32 is without TF32.", ""]
    lines += ["| model | FP32, ms | FP16, ms | plan, ms | how | FP32 differs from ONNX Runtime, of the tolerance |"]
    lines += ["|---|---|---|---|---|---|"]
    for model in found["models"]:
        times = [f"{1000 * model['seconds'][plan]['seconds']:.3g}" for plan in ("fp32", "fp16", "plan")]
        hows = ", ".join(sorted({of["how"] for of in model["seconds"].values()}))
        lines.append(f"| {model['name']} | {' | '.join(times)} | {hows} | {_number(model['fp32_difference'])} |")
    return [*lines, ""]


def _rest(found: Figures) -> list[str]:
    lines = [f"- not run: {name}: {why}" for name, why in found["not_run"].items()]
    return [*lines, *(f"- left out, no time: {name}" for name in found["left_out"])]


def _judged(of: Figures) -> str:
    return f"{of['verdict']} ({_number(of['ratio'])})"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.1%})" if whole else "")


def _number(value: float | None) -> str:
    return "" if value is None else "inf" if math.isinf(value) else f"{value:.3g}"
