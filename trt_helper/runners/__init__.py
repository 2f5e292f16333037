"""Typed models and engines executed on a GPU, each in a process of its own."""
