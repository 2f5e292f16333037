"""`trt-helper convert` as a user types it: real engines from small models, and how it can go wrong."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from support.command_line import (
    MAIN,
    PINS,
    checked,
    clean,
    everything,
    full_disk,
    in_process,
    misused,
    needs_rtx,
    ok,
    refused,
    run,
    save_input,
    save_overflowing,
    saved,
    two_lines,
)
from support.onnx_parts import constant, model, node, value

pytestmark = pytest.mark.usefixtures("own_folder")


def save_plan(text=None):
    """Write the overflowing model, its input, and a hand-written plan; returns the plan's path."""
    save_overflowing()
    Path("plan.yaml").write_text(text or "model: model.onnx\nFP32_LAYERS_FOR_FP16: [" + ", ".join(PINS) + "]\n")
    return Path("plan.yaml")


def typed(*words):
    """Convert to typed ONNX only; returns the JSON."""
    return ok("convert", *words, "--no-engine", "--typed-onnx", "typed.onnx", "--json").json


# ------------------------------------------------------------------------------------------- typed ONNX


def test_the_typed_model_is_sound_and_computes_what_the_plan_promises():
    """x and the root are cast to half for the division, its result back: 3 casts, none among the pins."""
    result = typed("-c", save_plan())
    found = checked("typed.onnx")
    assert result["typed_onnx"] == "typed.onnx"
    assert result["engine"] is None
    assert result["fp32_layers"] == PINS
    assert result["casts"] == sum(one.op_type == "Cast" for one in found.graph.node) == 3
    assert {one.name for one in found.graph.node if one.op_type != "Cast"} == {*PINS, "/norm/Div"}
    session = onnxruntime.InferenceSession("typed.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, dict(np.load("x.npz")))
    assert y.dtype == np.float32
    assert y.tolist() == [[1, -1] * 4]


def test_without_a_config_everything_is_fp16():
    saved(clean())
    assert typed("model.onnx")["fp32_layers"] == []
    types = {info.name: info.data_type for info in checked("typed.onnx").graph.initializer}
    assert set(types.values()) == {onnx.TensorProto.FLOAT16}


def test_weights_that_become_infinite_are_named():
    weights = [constant("big", np.float32([1e6, 1, 1, 1]))]
    saved(model([node("Add", ["x", "big"], ["y"], "add")], [value("x", [4])], [value("y", [4])], weights))
    result = ok("convert", "model.onnx", "--no-engine", "--typed-onnx", "typed.onnx", "--json")
    assert result.json["unrepresentable"] == ["big"]
    assert result.warnings[-1:] == [
        "warning: the values of 'big' pass 65504 and became infinite in FP16; pin the layer that reads them"
    ]


def test_the_users_model_and_config_stay_as_they_are():
    plan = save_plan()
    before = everything()
    typed("-c", plan)
    after = everything()
    assert after.pop("typed.onnx")
    assert after == before


# ---------------------------------------------------------------------------------------------- engines


@needs_rtx
def test_an_engine_comes_with_its_typed_model_and_a_sidecar_that_proves_it():
    words = ("convert", "-c", save_plan(), "-o", "new/m.trt", "--typed-onnx", "new/typed.onnx", "--json")
    result = ok(*words).json
    data = Path("new/m.trt").read_bytes()
    checked("new/typed.onnx")
    assert sorted(path.name for path in Path("new").iterdir()) == ["m.trt", "m.trt.json", "typed.onnx"]
    engine = result["engine"]
    assert (engine["path"], engine["bytes"]) == ("new/m.trt", len(data))
    assert engine["sha256"] == hashlib.sha256(data).hexdigest()
    assert engine["builder"].startswith("TensorRT-RTX ")
    assert [pin["layer"] for pin in result["pins"]] == PINS
    beside = json.loads(Path("new/m.trt.json").read_text())
    assert beside["engine"]["sha256"] == engine["sha256"]
    assert beside["model"]["sha256"] == result["model"]["sha256"]
    assert beside["pins"] == result["pins"]


@needs_rtx
def test_an_engine_lies_beside_its_model_unless_told_otherwise():
    Path("models").mkdir()
    saved(clean(batch=2), "models/net.onnx")
    result = ok("convert", "models/net.onnx")
    assert sorted(path.name for path in Path("models").iterdir()) == ["net.onnx", "net.trt", "net.trt.json"]
    assert "engine: models/net.trt (" in result.out
    assert "there is no fp32_layers.yaml beside models/net.onnx: every layer becomes FP16" in result.err


@needs_rtx
def test_what_locate_saw_becomes_the_profile():
    path, _ = save_overflowing()
    for batch in (1, 2, 5):
        save_input(f"inputs/{batch}.npz", x=np.full((batch, 8), 300, np.float32))
    ok("locate", path, "-i", "inputs")
    result = ok("convert", "-c", "fp32_layers.yaml", "-o", "m.trt")
    assert "only, for" not in result.err
    assert json.loads(Path("m.trt.json").read_text())["profile"] == {"x": [[1, 8], [2, 8], [5, 8]]}


@needs_rtx
def test_shapes_overrule_inputs_and_inputs_overrule_a_guess():
    saved(clean())
    save_input("x.npz", x=np.ones((3, 4), np.float32))
    profiles = []
    for words in ((), ("-i", "x.npz"), ("-i", "x.npz", "--shapes", "x:1x4,2x4,8x4")):
        result = ok("convert", "model.onnx", *words)
        profiles.append(json.loads(Path("model.trt.json").read_text())["profile"])
        assert ("--shapes" in result.err) is ("--shapes" not in words)
    assert profiles == [{"x": [[1, 4]] * 3}, {"x": [[3, 4]] * 3}, {"x": [[1, 4], [2, 4], [8, 4]]}]


@needs_rtx
def test_an_input_whose_values_set_shapes_gets_them_from_samples_or_shapes():
    nodes = [node("Exp", ["x"], ["e"], "exp"), node("Reshape", ["e", "s"], ["y"], "turn")]
    sizes = value("s", [2], TensorProto.INT64)
    saved(model(nodes, [value("x", [1, 6]), sizes], [value("y", ["a", "b"])]))
    for index, shape in enumerate(([6, 1], [2, 3], [1, 6])):
        save_input(f"in/{index}.npz", x=np.ones((1, 6), np.float32), s=np.array(shape))
    ok("convert", "model.onnx", "-i", "in")
    assert json.loads(Path("model.trt.json").read_text())["profile"]["s"] == [[1, 1], [2, 3], [6, 6]]
    ok("convert", "model.onnx", "--shapes", "s:1x1,2x3,6x6")
    assert json.loads(Path("model.trt.json").read_text())["profile"]["s"] == [[1, 1], [2, 3], [6, 6]]
    ok("locate", "model.onnx", "-i", "in", "--atol", "0.1", "-o", "plan.yaml")
    ok("convert", "-c", "plan.yaml")  # from what locate saw
    assert json.loads(Path("model.trt.json").read_text())["profile"]["s"] == [[1, 1], [2, 3], [6, 6]]


@needs_rtx
def test_a_guessed_size_is_said():
    saved(clean())
    warning = ok("convert", "model.onnx").warnings[-1]
    assert "the engine takes input 'x' with b = 1 only, for no size is known; give a range: --shapes x:1x4" in warning


# -------------------------------------------------------------------------------- what is not overwritten


@needs_rtx
def test_the_plan_beside_the_model_is_used_and_that_is_said():
    save_plan().rename("fp32_layers.yaml")
    result = ok("convert", "model.onnx", "--json")
    assert "using the plan beside the model: fp32_layers.yaml, 4 layers in FP32" in result.err
    assert result.json["fp32_layers"] == PINS


@needs_rtx
def test_a_plan_of_another_model_beside_it_is_not_used_and_that_is_said():
    path, inputs = save_overflowing()
    ok("locate", path, "-i", inputs)  # writes fp32_layers.yaml with a sha256
    saved(clean(), "other.onnx")
    result = ok("convert", "other.onnx", "--json", "--shapes", "x:2x4")
    assert "fp32_layers.yaml is of another model and not used" in result.err
    assert result.json["fp32_layers"] == []


@needs_rtx
def test_an_engine_of_another_plan_is_kept_unless_the_plan_is_named_or_force_is_given():
    plan, path = save_plan().rename("fp32_layers.yaml"), "model.onnx"
    ok("convert", "-c", plan, "-o", "m.trt", "--shapes", "x:2x8")
    good = Path("m.trt").read_bytes()
    again = ("-o", "m.trt", "--shapes", "x:2x8")
    ok("convert", path, *again)  # the plan beside it is the same
    plan = plan.rename("elsewhere.yaml")
    fix = "--force replaces it; -c names the plan that is meant; -o names another file"
    refused("convert", path, *again, says="m.trt is an engine with 4 layers in FP32, of another plan or model", fix=fix)
    assert Path("m.trt").read_bytes() == good
    Path("none.yaml").write_text("model: {path: model.onnx}\nFP32_LAYERS_FOR_FP16: []\n")
    assert "it is replaced" in ok("convert", path, "-c", "none.yaml", *again).err
    assert Path("m.trt").read_bytes() != good
    ok("convert", path, "-c", plan, *again)
    ok("convert", path, "--force", *again)
    assert Path("m.trt").read_bytes() != good


@needs_rtx
def test_a_file_that_convert_did_not_write_is_kept_unless_forced():
    saved(clean(batch=2))
    Path("model.trt").write_text("mine")
    refused("convert", "model.onnx", says="model.trt is there, and `convert` has no record", fix="--force replaces it")
    assert Path("model.trt").read_text() == "mine"
    ok("convert", "model.onnx", "--force")


@needs_rtx
def test_inputs_outputs_and_profile_are_printed_and_read_back_from_the_engine():
    saved(clean())
    lines = ["input x: float 1x4 to 8x4, usually 2x4", "output y: float ?x4"]
    result = ok("convert", "model.onnx", "--shapes", "x:1x4,2x4,8x4")
    shown = ok("inspect", "model.trt").out
    for line in lines:
        assert line in result.out
        assert line in shown


# ---------------------------------------------------------------------------------------- what is wrong


def test_a_model_or_something_to_write_must_be_given():
    Path("empty.yaml").write_text("")
    misused("convert", says="Invalid value: give a model, or a --config that names one")
    misused("convert", "-c", "empty.yaml", says="Invalid value: give a model, or a --config that names one")
    misused("convert", "model.onnx", "--no-engine", says="Invalid value: --no-engine needs --typed-onnx")
    misused("convert", "model.onnx", "--workspace", "0", says="Invalid value for '--workspace'")
    words = ("convert", "model.onnx", "-o", "m.trt", "--typed-onnx", "./m.trt")
    misused(*words, says="Invalid value: two files to be written have the same name")
    words = ("convert", "model.onnx", "-o", "m.trt", "--typed-onnx", "m.noted.onnx", "--emit", "netron")
    misused(*words, says="Invalid value: two files to be written have the same name")


@pytest.mark.parametrize(
    ("kind", "ending"), [("netron", ".noted.onnx"), ("explorer", ".layers.json"), ("trtexec", ".trtexec.sh")]
)
def test_what_is_in_the_way_of_what_is_emitted_is_said_before_the_build(kind, ending):
    Path(f"m{ending}").mkdir()
    refused("convert", "model.onnx", "-o", "m.trt", "--emit", kind, says=f"m{ending} is a folder")


def test_notes_for_netron_are_not_written_over_the_model():
    Path("m.noted.onnx").write_bytes(b"a model")
    words = ("convert", "m.noted.onnx", "-o", "m.trt", "--emit", "netron")
    refused(*words, says="m.noted.onnx is what the result is made from")
    assert Path("m.noted.onnx").read_bytes() == b"a model"


@pytest.mark.parametrize(
    ("words", "says", "fix"),
    [
        (("--shapes", "x:1x5"), "--shapes x:1x5 does not fit x, which is [b, 4]", "must be the same"),
        (("--shapes", "z:1x4"), "the model has no input 'z'", "its inputs: x"),
        (("--compute-capability", "9.9"), "has no compute capability '9.9'", "known are 7.5, 8.0"),
        (("--builder-arg", "STRICT_NANS"), "--builder-arg 'STRICT_NANS' is not NAME=VALUE", "STRICT_NANS=on"),
        (("--builder-arg", "flags=1"), "the builder argument 'flags' is not free", "name each BuilderFlag"),
    ],
)
def test_an_option_that_no_build_can_use_is_refused_with_its_value(words, says, fix):
    saved(clean())
    before = everything()
    result = run("convert", "model.onnx", *words)
    assert result.status in (2, 3), result
    error, remedy = two_lines(result.err)
    assert says in error
    assert fix in remedy
    assert everything() == before


@needs_rtx
def test_a_builder_argument_that_tensorrt_lacks_is_refused_with_the_nearest():
    saved(clean(batch=1))
    words = ("convert", "model.onnx", "--builder-arg")
    refused(*words, "STRICT_NAN=on", says="has no builder argument 'STRICT_NAN'", fix="did you mean 'STRICT_NANS'?")
    refused(*words, "STRICT_NANS=maybe", says="STRICT_NANS cannot be 'maybe'", fix="write on or off")


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        ("FP32_LAYERS_FOR_FP16: [/norm/Pwo]", "the model has no layer named '/norm/Pwo'", "did you mean '/norm/Pow'?"),
        ("FP32_LAYERS_FOR_FP16: [zzz]", "the model has no layer named 'zzz'", "trt-helper inspect model.onnx"),
        ("TRT_EXCLUDE_TACTIC: [{layer: dense, tactic: 5}]", "TRT_EXCLUDE_TACTIC cannot be applied", "empty the list"),
        (f"model: {{path: model.onnx, sha256: {'ab' * 32}}}", "was made for another model", "remove `sha256`"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(text, says, fix):
    refused("convert", "model.onnx", "-c", save_plan(text), says=says, fix=fix)


def test_a_changed_model_is_refused_with_both_hashes():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples)
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    proto = onnx.load(path)
    proto.doc_string = "changed"
    saved(proto)
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    refused("convert", "-c", "fp32_layers.yaml", says=f"model.onnx has sha256 {new[:12]}, not {old[:12]}")


def test_a_config_whose_model_is_gone_says_which():
    Path("plans").mkdir()
    Path("plans/plan.yaml").write_text("model: {path: gone.onnx}")
    refused("convert", "-c", "plans/plan.yaml", says="plans/gone.onnx does not exist")


@needs_rtx
def test_a_name_that_tensorrt_does_not_take_is_a_build_error():
    """TensorRT-RTX 1.7.1 takes 4096 characters."""
    path, samples = save_overflowing(names=("p", "m", "a", "s", "n" * 5000))
    ok("locate", path, "-i", samples)
    result = run("convert", "-c", "fp32_layers.yaml")
    assert result.status == 4
    error, _ = two_lines(result.err)
    assert "The given name exceeds the limit (4096 characters)" in error
    assert len(error) < 1100


@needs_rtx
def test_a_full_disk_leaves_the_old_engine_as_it_was():
    """The typed model has some 700 bytes and fits; no engine is that small."""
    saved(clean(batch=1))
    Path("m.trt").write_text("old")
    before = everything("..")
    with full_disk(20_000):
        result = run("convert", "model.onnx", "-o", "m.trt", "--force")
    assert result.status == 3
    assert two_lines(result.err)[0] == "m.trt cannot be written: File too large"
    assert everything("..") == before


# ----------------------------------------------------------------------------------------------- Ctrl-C


def deep(layers=40, width=256):
    """A model that takes a while to build."""
    draw = np.random.default_rng(0).standard_normal
    weights = [constant(f"w{i}", (draw((width, width)) / 16).astype(np.float32)) for i in range(layers)]
    nodes = [node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], f"dense{i}") for i in range(layers)]
    nodes += [node("Softmax", [f"m{i}"], [f"h{i + 1}"], f"soft{i}", axis=-1) for i in range(layers)]
    return model(nodes, [value("h0", [4, width])], [value(f"h{layers}", [4, width])], weights)


def children(pid):
    """The processes that `pid` has started and that still run."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


@needs_rtx
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("delay", [0.0, 0.15])
def test_ctrl_c_in_a_build_leaves_no_file_and_no_process(delay):
    saved(deep())
    Path("m.trt").write_text("old")
    before = everything("..")
    process = in_process(MAIN, "convert", "model.onnx", "-o", "m.trt", "--force")
    found = wait_until(lambda: children(process.pid))
    assert found, process.communicate()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert two_lines(err) == ("interrupted", "run the same command again")
    assert wait_until(lambda: not any(map(alive, found)), seconds=5)
    assert everything("..") == before


@needs_rtx
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
def test_a_killed_conversion_leaves_no_process_and_the_old_engine():
    saved(deep())
    Path("m.trt").write_text("old")
    process = in_process(MAIN, "convert", "model.onnx", "-o", "m.trt", "--force")
    found = wait_until(lambda: children(process.pid))
    assert found, process.communicate()
    process.kill()
    process.communicate(timeout=30)
    assert wait_until(lambda: not any(map(alive, found)), seconds=10)
    assert Path("m.trt").read_text() == "old"
