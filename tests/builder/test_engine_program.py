"""The program text inside an engine file: read where there is one, and harmless where it is strange."""

from __future__ import annotations

import pytest
from support.builder_models import built, convs, needs_rtx, requested

from trt_helper.builder.engine_program import Program, read_program
from trt_helper.builder.proof import prove


def test_a_file_without_text_says_nothing(tmp_path):
    path = tmp_path / "m.trt"
    for data in (b"ftrt" + bytes(range(256)) * 40, b"\ndescriptors {\n", b"\ndescriptors {\n}\nmain {\nx", b"vtrt"):
        path.write_bytes(data)
        assert read_program(path) == Program()


@needs_rtx
@pytest.mark.parametrize("name", ['a" b', "a }", "naïve/ü", "a layers=", "x={ name="])
def test_a_strange_layer_name_is_read_or_proves_nothing(tmp_path, name):
    made = convs("r0")
    for one in made.graph.node:
        one.name = name if one.name == "r0" else one.name
    engine = built(tmp_path, made)
    proof = prove([name], engine.layers, requested(made), program=engine.program)[0]
    assert proof.state in ("honoured", "fused")
