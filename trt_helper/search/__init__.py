"""Choosing layers by name: nothing here has ever seen a model, a tensor or a GPU."""
