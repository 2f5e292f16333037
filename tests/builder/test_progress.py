"""The progress of a build: sub-phases add up, and the fraction never falls."""

from __future__ import annotations

import pytest
from support.builder_models import built, convs, needs_rtx

from trt_helper.builder.progress import Progress


def test_progress_adds_sub_phases_up_and_never_falls():
    progress = Progress()
    progress.start("all", None, 2)
    progress.start("part", "all", 4)
    progress.step("part", 0)
    assert progress.fraction == pytest.approx(1 / 8)
    progress.finish("part")
    assert progress.fraction == pytest.approx(1 / 2)
    progress.step("all", 0)
    progress.start("part", "all", 4)
    progress.step("part", 0)
    assert progress.fraction == pytest.approx(1 / 2 + 1 / 8)
    progress.step("nobody", 3)
    progress.finish("part")
    progress.finish("all")
    assert progress.fraction == 1.0
    progress.start("all", None, 2)
    progress.step("all", 0)
    assert progress.fraction == 1.0


@needs_rtx
def test_progress_names_phases_and_never_falls(tmp_path):
    reported = []
    built(tmp_path, convs(), on_progress=lambda phase, fraction: reported.append((phase, fraction)))
    fractions = [fraction for _, fraction in reported]
    assert reported[0] == ("Reading the model", 0.0)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "Optimizing graph" in {phase for phase, _ in reported}
