"""Models of well-known architectures with planted FP16 hazards: `python benchmarks/hazard_models.py OUT [name ...]`.

Writes for each name a folder with `model.onnx`, `inputs.npz` (one sample), `inputs/` (eight) and `planted.json` (the
tolerance and the layers that must stay in FP32). Weights are random, of proper scale, and the same every time. Biases
carry the outliers, so that their size is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hazard_images import detr_like, diffusion_unet, efficientnet_b0, resnet50, segformer_b0, vit_b16, yolov8s_like
from hazard_texts import bert_base, decoder_88m, lstm_tagger, t5_small, whisper_tiny
from hazards import HazardModel

MODELS: dict[str, Callable[[Path, float], HazardModel]] = {
    make.__name__: make
    for make in (
        bert_base,
        vit_b16,
        decoder_88m,
        t5_small,
        resnet50,
        yolov8s_like,
        diffusion_unet,
        efficientnet_b0,
        segformer_b0,
        whisper_tiny,
        detr_like,
        lstm_tagger,
    )
}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    for name in sys.argv[2:] or MODELS:
        folder = Path(sys.argv[1]) / name
        (folder / "inputs").mkdir(parents=True, exist_ok=True)
        made = MODELS[name](folder / "model.onnx", 1.0)
        feeds = made.feeds(8)
        np.savez(folder / "inputs.npz", **feeds[0])
        for index, feed in enumerate(feeds):
            np.savez(folder / "inputs" / f"{index}.npz", **feed)
        planted = [sorted(group) for group in made.planted]
        (folder / "planted.json").write_text(json.dumps({"atol": made.atol, "planted": planted}, indent=1) + "\n")
        print(f"{name}: {len(made.kept)} layers to keep, atol {made.atol:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
