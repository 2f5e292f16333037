"""Export a PyTorch checkpoint to an ONNX file with the same outputs. Only this package imports torch."""
