"""How fast this machine runs a model, and how fast a GPU should. Nothing heavy is imported here.

Each way to run it has a process of its own (`*_child`): its peak memory is that of the process, and what one
library does to threads or a GPU touches no other.
"""
