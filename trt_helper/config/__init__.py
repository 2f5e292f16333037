"""Read and write fp32_layers.yaml, and the evidence in it."""
