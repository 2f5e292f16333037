"""From a PyTorch checkpoint to an ONNX file that gives the same answers. The only importers of torch are in here."""
