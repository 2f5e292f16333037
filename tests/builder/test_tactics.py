"""Excluded tactics: reading TensorRT's autotuning log, choosing replacements, and proving them in the engine."""

from __future__ import annotations

import pytest
from support.tensorrt_texts import CHOSEN, EXCLUDED, FIRST, KERNEL, KEY, LOG, SECOND, THIRD

from trt_helper.builder.layer_info import parse_layers
from trt_helper.builder.tactics import Candidate, prove_gone, read_tables, replacements, without_effect
from trt_helper.errors import BuildError, ConfigError

LOGS = {"one message": [LOG], "a message a line": LOG.splitlines()}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_every_table_of_the_log_is_read(log):
    first, second = read_tables(["Tactic timings follow, as they are", *log, "Engine generation completed"])
    assert (first.name, first.key, first.selected) == ("matMul1", KEY, FIRST)
    assert [one.tactic for one in first.candidates] == [FIRST, SECOND, THIRD]
    assert first.candidates[1] == Candidate(SECOND, KERNEL, 0.0118784)
    assert [one.kernel for one in second.candidates] == ["only_kernel"]  # NaN is no time


@pytest.mark.parametrize(
    ("exclusions", "taken"),
    [
        ([{"layer": "matMul1", "tactic": "0x665ded9abbf88"}], SECOND),
        ([{"layer": "matMul1", "tactic": str(FIRST)}], SECOND),
        ([{"layer": "matMul1", "tactic": hex(FIRST)}, {"layer": "matMul1", "kernel": KERNEL}], THIRD),
    ],
)
def test_the_fastest_that_is_not_excluded_is_taken(exclusions, taken):
    (found,) = replacements(read_tables([LOG]), exclusions)
    assert (found.operation.key, found.candidate.tactic) == (KEY, taken)


@pytest.mark.parametrize(
    "exclusion",
    [
        {"layer": "matMul1", "tactic": hex(SECOND)},  # it was not chosen
        {"layer": "matMul1", "tactic": hex(FIRST), "kernel": KERNEL},  # that kernel has another hash
    ],
)
def test_nothing_is_changed_where_the_chosen_tactic_is_not_excluded(exclusion):
    assert replacements(read_tables([LOG]), [exclusion]) == ()


def test_what_is_excluded_for_one_layer_is_free_for_another():
    tables = read_tables([LOG, LOG.replace("matMul1", "matMul2")])
    (found,) = replacements(tables, [{"layer": "matMul2", "tactic": hex(FIRST)}])
    assert found.operation.name == "matMul2"


def test_a_hash_of_zero_is_a_tactic_like_any_other():
    log = LOG.replace("0x665ded9abbf88", "0x0")
    (found,) = replacements(read_tables([log]), [{"layer": "matMul1", "tactic": 0}])
    assert found.candidate.tactic == SECOND


def test_a_fused_operation_answers_to_each_of_its_layers_and_needs_a_tactic_left():
    with pytest.raises(BuildError, match=r"every tactic of 'conv1 \+ relu1' is excluded: 1 were timed"):
        replacements(read_tables([LOG]), [{"layer": "relu1", "tactic": "0x2"}])


def test_a_layer_that_was_not_timed_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'matMul3', for which TensorRT timed no tactics") as caught:
        replacements(read_tables([LOG]), [{"layer": "matMul3", "tactic": "0x2"}])
    assert "matMul" in caught.value.fix


# ------------------------------------------------------------------------------------------ what the engine took

# The same README: the line of matMul1 in the first engine, shortened to two of its fields; that of a second engine.
LAYER = (
    "Layers:\nName: matMul1_myl0_0, LayerType: gemm, Inputs: [ { Name: input, Dimensions: [128,128], "
    "Format/Datatype: Float }], Outputs: [ { Name: __myln_k_arg__bb1_4, Dimensions: [128,128], "
    "Format/Datatype: Float }], TacticName: %s, StreamId: 0, Metadata: \n"
)


def proof(kernel, exclusions=EXCLUDED, name="matMul1_myl0_0", log=LOG):
    tables = read_tables([log])
    layers = parse_layers((LAYER % kernel).replace("matMul1_myl0_0", name))
    return prove_gone(layers, tables, exclusions, replacements(tables, exclusions))


@pytest.mark.parametrize("name", ["matMul1_myl0_0", "matMul1"])
def test_the_engine_that_took_the_other_kernel_is_proven(name):
    assert proof(KERNEL, name=name) == []


def test_the_engine_that_kept_the_excluded_kernel_is_refused():
    with pytest.raises(BuildError, match=f"took {CHOSEN} for 'matMul1' instead of {KERNEL}"):
        proof(CHOSEN)


def test_a_third_kernel_is_not_what_was_requested_either():
    with pytest.raises(BuildError, match="took some_kernel for 'matMul1'"):
        proof("some_kernel")


def test_an_excluded_kernel_that_the_log_did_not_choose_is_looked_for_all_the_same():
    later = [{"layer": "matMul1", "kernel": KERNEL}]
    assert proof(CHOSEN, later) == []
    with pytest.raises(BuildError, match=f"took {KERNEL} for 'matMul1', which is excluded"):
        proof(KERNEL, later)


def test_a_kernel_that_an_excluded_tactic_shares_with_the_wanted_one_is_not_proven_and_no_error():
    log = LOG.replace(f"{CHOSEN}, 0x665", f"{KERNEL}, 0x665")  # both tactics of one kernel
    (warning,) = proof(KERNEL, log=log)
    assert f"'matMul1' took {KERNEL}, and an excluded tactic has the same kernel" in warning
    with pytest.raises(BuildError, match=f"took {CHOSEN} for 'matMul1' instead of {KERNEL}"):
        proof(CHOSEN, log=log)


def test_a_kernel_that_is_shared_is_proven_where_the_log_says_which_tactic_was_selected():
    log = LOG.replace(f"{KERNEL}, 0x393", f"{CHOSEN}, 0x393")
    assert proof(CHOSEN, [{"layer": "matMul1", "tactic": hex(SECOND)}], log=log) == []


@pytest.mark.parametrize("name", ["matMul11_myl0_0", "matMul2_myl0_3", "matMul1_extra"])
def test_the_kernel_of_another_layer_proves_nothing(name):
    (warning,) = proof(KERNEL, name=name)
    assert "names no layer 'matMul1', its kernel is not proven" in warning


def test_an_entry_that_excludes_nothing_here_says_why():
    entry = {"layer": "matMul1", "tactic": "0x77", "tensorrt": "10.8.0.43", "gpu": "NVIDIA A100"}
    (warning,) = without_effect(read_tables([LOG]), [*EXCLUDED, entry], "11.1.0.106", "NVIDIA A100")
    assert "0x77 was not among the tactics timed for 'matMul1'" in warning
    assert "10.8.0.43 there, 11.1.0.106 here" in warning
    assert "A100" not in warning
