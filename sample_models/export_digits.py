"""Export the trained digits model to ONNX: `python export_digits.py OUT.onnx`."""

import logging
import sys
import warnings
from pathlib import Path

import torch
from digits import digits

HERE = Path(__file__).resolve().parent
PARITY = 1e-5  # largest difference of a probability between PyTorch and ONNX Runtime


def export(out: Path) -> float:
    """Write the model to `out`; returns the largest difference from PyTorch in ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415 - the export itself does not need it

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # from inside torch.export
    model = digits()
    model.load_state_dict(torch.load(HERE / "digits.pt", weights_only=True))
    image = torch.rand(4, 1, 8, 8) * 4095
    torch.onnx.export(
        model,
        (image,),
        out,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        dynamo=True,
        optimize=False,  # the exporter's optimiser takes an epsilon of 1e-8 or less for zero and removes it
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})[0]
    return float(abs(found - model(image).detach().numpy()).max())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    difference = export(target)
    print(f"{target}: exported, differs from PyTorch by {difference:.1e}")
    sys.exit(0 if difference <= PARITY else 1)
