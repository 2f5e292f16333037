"""Wall seconds, CPU seconds and peak memory of a command, as `time -v` tells them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# A process counts what its parent held when it was forked, so a small one stands between.
SMALL = """
import json, os, resource, subprocess, sys, time
cores, *command = json.loads(sys.argv[1])
if cores: os.sched_setaffinity(0, cores)
started = time.perf_counter()
done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
seconds = time.perf_counter() - started
lines = [line for line in done.stdout.splitlines() if line.strip()] or [f"exit {done.returncode}"]
used = resource.getrusage(resource.RUSAGE_CHILDREN)
error = lines[-1][:100] if done.returncode else ""
print(json.dumps([seconds, used.ru_maxrss / 1e6, error, used.ru_utime + used.ru_stime]))
"""


@dataclass(frozen=True)
class Run:
    """One process and its children."""

    seconds: float
    peak: float  # GB, resident
    error: str  # the last line that it said, when it failed
    cpu: float  # seconds


def run(command: Sequence[object], cores: Sequence[int] = ()) -> Run:
    """Run a command to its end, on all cores or on some."""
    told = json.dumps([list(cores), *(str(part) for part in command)])
    found = subprocess.run([sys.executable, "-S", "-c", SMALL, told], check=True, capture_output=True, text=True)
    return Run(*json.loads(found.stdout))
