"""Writes docs/kernels.md: what a kernel computes for each operator in half precision, and how the emulator agrees.

Each row's model runs on the emulator and, written down again in numpy's float16, by code that shares nothing with it.

    python benchmarks/kernels.py
"""

from __future__ import annotations

import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.kernel_steps import STEPS  # noqa: E402
from support.lowered_models import OneOperator, lowered_models  # noqa: E402
from support.model_cases import save_case  # noqa: E402

from trt_helper.emulator.lowering import LOWERED, ONE_STEP  # noqa: E402
from trt_helper.system.versions import versions  # noqa: E402
from trt_helper.values import Plan  # noqa: E402

PAGE = ROOT / "docs" / "kernels.md"
HEAD = """# What kernels compute in half precision

One ONNX operator is not always one step of a kernel: where the kernel rounds in between, so does the emulator. The
rows were read from the text of the kernels in engines that TensorRT-RTX 1.7.1.116 builds (it compiles them on the
user's GPU, so an engine holds their source), and `tests/builder/test_kernel_steps.py` reads them again in the version
that is installed. No kernel was run for it.

The last two columns: the row's model on the emulator, and by the same steps in numpy's float16, in code that shares
nothing with it (`tests/support/kernel_steps.py`). "equal" is the share of equal elements; "apart" the largest
difference, in steps of half precision (units in the last place).
"""
ONE = """
## One step

These read rounded values, compute in FP32 and are rounded once, as rows above whose condition does not hold.

| why | operators |
|---|---|
"""


def main() -> int:
    """Measure every row and write the page."""
    rows = [f"| {name} | {row.says} | {_agreement(lowered_models()[name])} |" for name, row in sorted(LOWERED.items())]
    table = ["| operator | in half precision | equal | apart |", "|---|---|---|---|", *rows]
    used = f"onnxruntime {versions()['onnxruntime']}, numpy {np.__version__}"
    reasons = dict.fromkeys(ONE_STEP.values())
    one = [f"| {why} | {', '.join(name for name, says in ONE_STEP.items() if says == why)} |" for why in reasons]
    measured = f"\nMeasured {date.today().isoformat()} with {used}.\n"
    PAGE.write_text(HEAD + "\n" + "\n".join(table) + "\n" + measured + ONE + "\n".join(one) + "\n")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


def _agreement(one: OneOperator) -> str:
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        case = save_case(one.case(), Path(folder))
        (found,) = case.emulator.run(Plan(), case.feed).values()
        expected = STEPS[one.operator](*one.arrays)
    apart = np.abs(_order(found.astype(np.float16)) - _order(expected))
    both = np.isfinite(found) & np.isfinite(expected)
    equal = float(np.mean(np.where(both, apart == 0, found == expected.astype(np.float32))))
    return f"{100 * equal:.1f} % | {int(apart[both].max(initial=0))}"


def _order(half: np.ndarray) -> np.ndarray:
    """The place of each half among all halves."""
    bits = half.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


if __name__ == "__main__":
    sys.exit(main())
