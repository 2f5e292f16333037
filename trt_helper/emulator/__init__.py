"""Compute a plan with FP16 or BF16 rounding on any CPU, and say which layers it harms and why."""
