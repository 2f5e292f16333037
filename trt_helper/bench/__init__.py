"""Measure how fast this machine runs a model, and estimate how fast a GPU would. Nothing heavy is imported here.

Each backend runs in its own child process (`*_child`). Its peak memory is then that of the process, and a library's
changes to threads or to a GPU do not affect the others.
"""
