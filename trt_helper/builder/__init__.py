"""From a typed model to an engine, and the proof that the engine keeps its pins."""
