"""What a model is judged on: samples, the shapes of its inputs, FP32 references, a metric."""
