"""Typed ONNX to engine, and the proof that the engine keeps its pins.

Nothing heavy is imported here: TensorRT-RTX is imported by the child process that builds.
"""

from trt_helper.builder.engine import EngineBuild
from trt_helper.builder.inside import Asked
from trt_helper.builder.layer_info import EngineLayer, EngineTensor, half_share, parse_layers
from trt_helper.builder.program import Program, read_program
from trt_helper.builder.proof import HEAVY, PinProof, PinState, prove
from trt_helper.builder.rtx import build
from trt_helper.builder.settings import BuildSettings, Profile, Shape

__all__ = [
    "HEAVY",
    "Asked",
    "BuildSettings",
    "EngineBuild",
    "EngineLayer",
    "EngineTensor",
    "PinProof",
    "PinState",
    "Profile",
    "Program",
    "Shape",
    "build",
    "half_share",
    "parse_layers",
    "prove",
    "read_program",
]
