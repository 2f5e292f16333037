"""TensorRT's autotuning log, and what is excluded in it."""

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
