"""Engines and typed models executed on a GPU. Nothing heavy is imported here: each run has a process of its own."""

from trt_helper.runners.oracle import RunnerOracle, runner_oracle
from trt_helper.runners.run import RUNNERS, Runner, execute, runner_here

__all__ = ["RUNNERS", "Runner", "RunnerOracle", "execute", "runner_here", "runner_oracle"]
