"""The user's model as a graph of layers: read, check, normalise, apply a plan to, write with types."""
