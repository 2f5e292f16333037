"""Texts that TensorRT wrote: autotuning logs with what is excluded in them, and lists of an engine's layers."""

from __future__ import annotations

import json

FIRST, SECOND, THIRD = 0x665DED9ABBF88, 0x393E4EF8AD243, 0x2AD3A182FB05C
KEY = "0x1814870c44ff0f8574df6e3dda04cbd7"
KERNEL = "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x32x64_stage4_warpsize2x1x2_tensor16x8x8"

# NVIDIA/TensorRT, samples/sampleEditableTimingCache/README.md (written by TensorRT 10.8); the second table is its
# matMul2, of which the README shows the order of kernels alone: costs here are made up.
LOG = f"""Autotuning op matMul1(key: {KEY}):
Sorted table of all evaluated tactics:
tactic_id, cost(in ms), cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, tunable_parameter
   3, 0.0112640, 1.00000, 0.50673, sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64, 0x665ded9abbf88,
   5, 0.0118784, 1.05455, 0.51157, {KERNEL}, 0x393e4ef8ad243,
   6, 0.0123904, 1.10000, 0.50600, sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x32x64_s5, 0x2ad3a182fb05c,
The selected tactic is (tactic hash, cost(in ms)):0x665ded9abbf88,  0.011264
Writing the best tactic (0x665ded9abbf88) to cache
Autotuning op conv1 + relu1(key: 0xb222b0832016f1115ff61116c094875a):
tactic_id, cost(in ms), cost/fastest_cost, prediction_correlation, kernel_name, tactic_hash, tunable_parameter
   0, nan, 1.0, 0.5, broken_kernel, 0x1,
   1, 0.02, 1.0, 0.5, only_kernel, 0x2,
The selected tactic is (tactic hash, cost(in ms)):0x2,  0.02
"""
CHOSEN = "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64"
EXCLUDED = [{"layer": "matMul1", "tactic": hex(FIRST)}]


# Logged by the builder of TensorRT-RTX 1.7.1.116 on a machine without a GPU, shortened.
RTX_17 = (
    "Layers:\n"
    "Name: c0_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,64,16,16], "
    "Strides: [16384,1,1024,64], StrideOrder: [3,0,2,1], Datatype: Half, "
    "Format: (NHWC) Channel major format }], Constants: [ { Name: __mye1, Dimensions: [64,64,3,3], "
    "Strides: [576,1,192,64], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }, "
    "{ Name: __mye2, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, "
    "Format: (Linear) Row major linear format }], Outputs: [ { Name: r0_out, Dimensions: [1,64,16,16], "
    "Strides: [16384,1,1024,64], StrideOrder: [3,0,2,1], Datatype: Half, "
    "Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: c0]\x1f[ONNX Layer: r0]\n"
    "Name: __mye17cbr_myl0_2, LayerType: cjmp, Inputs: [ { Name: c, Dimensions: [1], Strides: [1], "
    "StrideOrder: [0], Datatype: Bool, Format: (Linear) Row major linear format }], Constants: [], "
    "Outputs: [], TacticName: , StreamId: 0, JumpTargetThen: a, JumpTargetElse: b, "
    "Metadata: [ONNX Layer: if0]\x1f[ONNX Layer: relu | then (then_branch) | if0 (If)]\n"
    "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Float, Dimensions: [1,64,16,16]\n"
)

# Logged by the builder of TensorRT-RTX 1.4.0.76 (TensorRT 10 style), shortened.
RTX_14 = (
    "Layers:\n"
    "Name: __myl_CorrCast_myl0_1, LayerType: runtime_fusion, Inputs: [ { Name: __myln_k_arg__bb1_2_myl0, "
    "Dimensions: [1,64,16,16], Format/Datatype: Half }], Outputs: [ { Name: __myln_k_arg__bb1_3_myl0, "
    "Dimensions: [1,64,16,16], Format/Datatype: Float }], TacticName: , StreamId: 0, "
    "Metadata: [ONNX Layer: c0]\x1f[ONNX Layer: r0]\x1f[ONNX Layer: cast_mid_in]\n"
    "\nBindings:\nx\ny\n"
)

# The keys are those of the engine JSON files that ship with NVIDIA's TREx
# (NVIDIA/TensorRT, tools/experimental/trt-engine-explorer/examples, commit 768d994: Inputs with
# Location and Format/Datatype, Weights and Bias with Type and Count) and, for Metadata, of TensorRT 10.
INSPECTOR_10 = json.dumps(
    {
        "Layers": [
            {
                "Name": "conv1 + relu1",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {
                        "Name": "x",
                        "Location": "Device",
                        "Dimensions": [1, 3, 32, 32],
                        "Format/Datatype": "Row major linear FP16 format",
                    }
                ],
                "Outputs": [
                    {
                        "Name": "y",
                        "Location": "Device",
                        "Dimensions": [1, 8, 32, 32],
                        "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                    }
                ],
                "ParameterType": "Convolution",
                "Weights": {"Type": "Half", "Count": 216},
                "Bias": {"Type": "Half", "Count": 8},
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16",
                "TacticValue": "0x01",
                "StreamId": 0,
                "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
            }
        ],
        "Bindings": ["x", "y"],
    }
)

# TensorRT 11 splits Format/Datatype and replaces Bindings by I/O Tensors: NVIDIA, "Migrating
# IEngineInspector Usage from TensorRT 10.x to 11.x" (docs 11.0.0). Field names inside a layer as the
# builder of RTX 1.7.1, which has the same API, logs them.
INSPECTOR_11 = json.dumps(
    {
        "Layers": [
            {
                "Name": "conv_myl0_0",
                "LayerType": "correlation",
                "Inputs": [
                    {
                        "Name": "x",
                        "Dimensions": [1, 8, 4, 4],
                        "Datatype": "Half",
                        "Format": "Row major linear format",
                    }
                ],
                "Constants": [
                    {"Name": "w", "Dimensions": [8, 8, 3, 3], "Datatype": "Half", "Role": "weights"},
                    {"Name": "b", "Dimensions": [1, 8, 1, 1], "Datatype": "Half"},
                ],
                "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Datatype": "Float"}],
                "TacticName": "t",
                "StreamId": 0,
                "Metadata": "[ONNX Layer: conv]",
            }
        ],
        "I/O Tensors": [
            {"Name": "x", "IOMode": "Input", "DataType": "Half", "Dimensions": [1, 8, 4, 4]},
        ],
    }
)
