"""The story that a report tells: what broke, why, what was done, and how sure that is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.command_line import run, save_overflowing

from trt_helper.emulator import causes
from trt_helper.report import story
from trt_helper.report.read import read_record
from trt_helper.search.with_rewrites import RANGE

ROOT = Path(__file__).parents[2]

SQUARE = 330.0**2  # the largest value that `overflowing` makes of the samples


pytestmark = pytest.mark.usefixtures("own_folder")


def test_the_story_tells_what_broke_why_what_was_done_and_how_sure_that_is(run_records):
    record = read_record(run_records["pins"])
    assert story.headline(record) == "4 of 5 layers stay in FP32; the outputs are then within tolerance"
    found = {card.title: " ".join(card.lines) for card in story.cards(record)}
    assert list(found) == ["What broke", "Why", "What was done", "How sure that is"]
    assert (
        "the output y is off by 1 (1,000 times too much); allowed is max ≤ 0.001 or 0.001 relative."
        in found["What broke"]
    )
    assert "4 of 5 samples fail" in found["What broke"]
    assert "Overflow: values pass 65504" in found["Why"]
    assert f"here up to {SQUARE:.3g}" in found["Why"]
    assert all(f"/norm/{name}" in found["Why"] for name in ("Pow", "ReduceMean", "Add"))
    assert "and 1 more" in found["Why"]
    assert "the other 20 % compute in FP16" in found["What was done"]
    assert "Each pin was taken out once more and the result did not pass" in found["How sure that is"]
    assert "5 samples, 1 of which the search did not see" in found["How sure that is"]
    assert "emulated on a CPU" in found["How sure that is"]
    assert (
        "It holds with better and with worse kernels (error over what is allowed: typical" in found["How sure that is"]
    )
    assert story.warnings(record) == []


def test_the_story_of_a_model_that_fp16_computes_well(run_records):
    record = read_record(run_records["clean"])
    assert story.headline(record) == "FP16 is accurate as it is"
    found = {card.title: " ".join(card.lines) for card in story.cards(record)}
    assert found["What broke"].startswith("Nothing")
    assert "Why" not in found
    (warning,) = story.warnings(record)
    assert "random inputs" in warning


def test_a_plan_that_is_not_proven_to_be_smallest_is_a_warning():
    path, samples = save_overflowing()
    assert run("locate", path, "-i", samples, "--max-pins", "2").status == 1
    record = read_record(Path("fp32_layers.run.json"))
    assert story.headline(record) == "FP16 misses the tolerance; no layer is pinned"  # 2 pins are no better than 0
    (warning,) = story.warnings(record)
    assert warning.startswith("The plan may not be the smallest: the best of those tried with at most 2 pins")


def test_short_names_drop_what_they_share():
    assert story.short(["a/b/c/x", "a/b/d/y"]) == ["…/c/x", "…/d/y"]
    assert story.short(["x", "y"]) == ["x", "y"]
    assert story.short(["a/b/c/x"]) == ["…/c/x"]
    assert story.short([]) == []


@pytest.mark.parametrize("word", ["overflow", "underflow", "constant", "mask", "division", "logarithm", "epsilon"])
def test_words_for_range_have_a_sentence_and_are_tried_in_bf16(word):
    assert story.CAUSES[word]
    assert word in RANGE


def test_every_cause_has_a_sentence_and_stands_in_the_documents():
    """The words are read from the source, where a rule returns each as a literal."""
    words = set(re.findall(r'return \(?"([a-z]+)", ', Path(causes.__file__).read_text()))
    assert words == set(story.CAUSES) - {""}
    readme, architecture = ((ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md"))
    glossary = next(line for line in architecture.splitlines() if line.startswith("| cause |"))
    for word in words:
        assert f"`{word}`" in readme
        assert word in glossary
