"""One of ONNX's own test models for every operator: the emulator computes what the typed file computes."""

from __future__ import annotations

import numpy as np
import pytest
from support.independent import run_on_ort, run_with_pairs
from support.model_cases import save_case
from support.operator_cases import cases

from trt_helper.values import Plan

LIMITS = {
    "MeanVarianceNormalization": "onnx's own strict inference fails on its function body, whatever the types",
    "LinearAttention": "ONNX Runtime expands it into a Scan, which needs shapes that one layer alone does not have",
    "CausalConvWithState": "ONNX Runtime runs it only as part of a whole model",
    "SplitToSequence": "TensorRT has no sequences",
    **dict.fromkeys(("DynamicQuantizeLinear", "QLinearMatMul"), "quantised already"),
    **dict.fromkeys(("ArrayFeatureExtractor", "Binarizer", "TreeEnsemble"), "of another domain"),
}


@pytest.mark.parametrize("operator", cases())
def test_the_emulator_says_what_the_typed_file_computes(tmp_path, operator):
    if operator in LIMITS:
        pytest.skip(LIMITS[operator])
    case = save_case(cases()[operator], tmp_path)
    try:
        original = run_on_ort(case.path, case.feed)
    except Exception as error:
        pytest.skip(f"ONNX Runtime's CPU provider cannot: {str(error)[:80]}")
    for plan in (Plan(), case.graph.all_pinned()):
        found = case.one_step.run(plan, case.feed)
        expected = run_with_pairs(case.write(plan), case.feed)
        assert list(found) == list(expected) == list(original)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array)
    for output, array in original.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[output], array)
