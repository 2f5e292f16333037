"""Find a minimal set of layers that must stay in FP32: what to try next, what judges it, what is remembered."""
