"""Files, memory, child processes, facts of the GPU, versions."""
