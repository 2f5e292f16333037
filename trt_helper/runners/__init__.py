"""Run typed models and engines on a GPU, each in its own process."""
