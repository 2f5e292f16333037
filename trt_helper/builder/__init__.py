"""Build an engine from a typed model, and prove that the engine keeps its pins in FP32."""
