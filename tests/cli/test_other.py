"""compare, inspect, doctor, help, and what all commands share: names on a terminal, bugs, pipes, imports."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from onnx import TensorProto
from support.cli_helpers import (
    MAIN,
    PINS,
    clean,
    in_process,
    misused,
    model,
    node,
    ok,
    own_folder,
    refused,
    run,
    run_in_process,
    save_input,
    save_overflowing,
    saved,
    two_lines,
    value,
)

import trt_helper
from trt_helper.builder import engine_file
from trt_helper.cli.main import app
from trt_helper.config.plan_file import read_config
from trt_helper.format.text import LONGEST_NAME, plain
from trt_helper.system import machine

COMMANDS = sorted(typer.main.get_command(app).commands)
HEAVY = ["onnxruntime", "onnx", "onnx_ir", "onnxscript", "torch", "tensorrt", "tensorrt_rtx", "polygraphy", "numpy"]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    own_folder(tmp_path, monkeypatch)


# ---------------------------------------------------------------------------------------------- compare


def test_compare_says_what_fp16_does_to_every_layer():
    path, samples = save_overflowing()
    result = run("compare", path, "-i", samples, "--json")
    assert result.status == 1
    assert result.err == ""
    found = result.json
    assert (found["schema"], found["verdict"], found["runner"], found["fp32_layers"]) == (1, "fail", "emulate", [])
    assert found["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["tolerance"] == {"atol": 0.001, "rtol": 0.001, "check-error-stat": "max"}
    assert [sample["source"] for sample in found["samples"]] == ["x.npz"]
    assert found["samples"][0]["outputs"]["y"]["max"] == 1
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == [*PINS, "/norm/Div"]
    assert layers["/norm/Pow"]["isolated"]["non_finite"] == 8  # 90000 in each of the eight
    assert layers["/norm/Div"]["isolated"]["max"] == 0  # 300 / 300: a victim, no culprit
    assert layers["/norm/Div"]["accumulated"]["max"] == 1


def test_compare_with_the_plan_passes_and_marks_its_pins():
    path, samples = save_overflowing()
    ok("locate", path, "-i", samples)
    found = ok("compare", "-c", "fp32_layers.yaml", "-i", samples, "--json").json
    assert found["verdict"] == "pass"
    assert found["fp32_layers"] == [layer["name"] for layer in found["layers"] if layer["pinned"]] == PINS
    assert {layer["accumulated"]["max"] for layer in found["layers"]} == {0}


def test_compare_shows_tables_with_the_worst_layers_only():
    path, samples = save_overflowing()
    whole = run("compare", path, "-i", samples)
    assert whole.status == 1
    assert all(name in whole.out for name in [*PINS, "/norm/Div", "x.npz", "FAIL"])
    one = run("compare", path, "-i", samples, "--rows", "1")
    assert sum(name in one.out for name in [*PINS, "/norm/Div"]) == 1
    misused("compare", path, "--rows", "0", says="Invalid value for '--rows'")


def test_compare_needs_a_model_and_a_plan_that_fits():
    misused("compare", says="Invalid value: give a model, or a --config that names one")
    save_overflowing()
    Path("plan.yaml").write_text("model: model.onnx\nFP32_LAYERS_FOR_FP16: [/norm/Divv]\n")
    refused("compare", "-c", "plan.yaml", says="the model has no layer named '/norm/Divv'", fix="'/norm/Div'")
    Path("plan.yaml").write_text("atol: {z: 1.0}\n")
    refused("compare", "model.onnx", "-c", "plan.yaml", says="the model has no output 'z'", fix="its outputs: y")


# ---------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_inputs_outputs_and_layers_of_a_model():
    saved(clean())
    found = ok("inspect", "model.onnx", "--json").json
    assert found["schema"] == 1
    assert found["model"]["layers"] == 2
    assert found["opset"] == 17
    assert found["inputs"] == [{"name": "x", "type": "float", "shape": ["b", 4]}]
    assert found["outputs"] == [{"name": "y", "type": "float", "shape": ["b", 4]}]
    dense, act = found["layers"]
    assert (dense["name"], dense["op"], dense["role"], dense["children"]) == ("dense", "MatMul", "compute", ["act"])
    assert (act["name"], act["parents"]) == ("act", ["dense"])
    shown = ok("inspect", "model.onnx")
    assert "model.onnx: 2 layers, 2 of them may be pinned, opset 17" in shown.out
    assert "MatMul" in shown.out
    assert "dense" not in shown.out
    assert "dense" in ok("inspect", "model.onnx", "--layers").out


def test_inspect_tells_the_users_own_types_of_a_half_model():
    half = TensorProto.FLOAT16
    saved(model([node("Neg", ["x"], ["y"], "neg")], [value("x", [2], half)], [value("y", [2], half)]))
    found = ok("inspect", "model.onnx", "--json").json
    assert [found[side][0]["type"] for side in ("inputs", "outputs")] == ["float16", "float16"]


def save_engine(**changes):
    """Something that begins as an engine does, with its sidecar."""
    data = b"vtrt" + bytes(100)
    Path("m.trt").write_bytes(data)
    pin = {"layer": "/norm/Pow", "state": "fp32", "engine_layers": ["kernel"], "types": ["FP32"], "evidence": "reads"}
    layer = {"name": "kernel", "onnx": ["/norm/Pow"], "inputs": ["FP32"], "constants": [], "outputs": ["FP16"]}
    record = {
        "schema": 1,
        "engine": {"builder": "TensorRT-RTX 1.7", "sha256": hashlib.sha256(data).hexdigest()},
        "model": {"path": "model.onnx", "sha256": "00"},
        "pins": [pin],
        "layers": [layer],
        **changes,
    }
    Path("m.trt.json").write_text(json.dumps(record))
    return data


def test_inspect_of_an_engine_shows_the_proof_beside_it():
    data = save_engine()
    found = ok("inspect", "m.trt", "--json").json
    assert (found["schema"], found["product"], found["bytes"]) == (1, "TensorRT-RTX", len(data))
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["proof"]["pins"][0]["layer"] == "/norm/Pow"
    shown = ok("inspect", "m.trt").out
    assert "built by TensorRT-RTX 1.7 from model.onnx" in shown
    assert "/norm/Pow" in shown


def test_a_proof_of_another_engine_is_no_proof():
    save_engine(engine={"builder": "TensorRT-RTX 1.7", "sha256": "00"})
    assert ok("inspect", "m.trt", "--json").json["proof"] == {}
    assert "its layers can be read on a GPU only" in ok("inspect", "m.trt").out


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"engine": 5}'])
def test_a_proof_that_cannot_be_read_is_refused(text):
    save_engine()
    Path("m.trt.json").write_text(text)
    refused("inspect", "m.trt", says="m.trt.json cannot be read", fix="remove it, or convert the model again")


def test_a_short_or_missing_file_is_no_engine():
    assert not engine_file.is_engine(Path("missing.trt"))
    Path("short.trt").write_bytes(b"vt")
    assert not engine_file.is_engine(Path("short.trt"))
    refused("inspect", "short.trt", says="short.trt is not an ONNX model, or it is truncated (2 bytes)")


# ----------------------------------------------------------------------------------------------- doctor


def test_doctor_tells_what_this_machine_can_do():
    found = ok("doctor", "--json").json
    assert set(found) == {"schema", "trt-helper", "platform", "abilities"}
    assert found["trt-helper"] == trt_helper.__version__
    for ability in found["abilities"]:
        assert set(ability) == {"what", "here", "with", "more"}
        assert ability["with"] if ability["here"] else ability["more"]
    assert found["abilities"][0]["what"] == "emulate FP16 (any CPU)"
    assert found["abilities"][0]["here"] is True


NO_GPU = machine.Gpu(missing="a machine with an NVIDIA GPU and its driver (libcuda.so.1 was not found here)")


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (NO_GPU, "a machine with an NVIDIA GPU"),
        (machine.Gpu("NVIDIA H100", "9.0", "13.0"), "this one, NVIDIA H100, has 9.0"),
        (machine.Gpu("NVIDIA RTX A2000", "8.6", "13.0"), ""),
    ],
)
def test_doctor_asks_for_a_gpu_that_can_run_the_engine(monkeypatch, gpu, says):
    monkeypatch.setattr(machine, "find_gpu", lambda: gpu)
    monkeypatch.setattr(machine, "version", lambda _: "1.0")
    found = {ability.what: ability for ability in machine.abilities()}
    run_rtx = found["run engines, TensorRT-RTX (RTX GPU)"]
    assert run_rtx.here == (not says)
    assert says in run_rtx.more
    shown = " ".join(ok("doctor").out.split())
    assert ("CUDA driver 13.0" in shown) is bool(gpu.name)


def test_the_driver_that_is_not_there_is_named():
    gpu = machine.find_gpu()
    assert bool(gpu.name) != bool(gpu.missing)


# ------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [(), *[(name,) for name in COMMANDS]], ids=lambda words: " ".join(words) or "app")
def test_help_fits_a_screen(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("--help", "-h"):
        lines = ok(*words, option).out.splitlines()
        assert 5 < len(lines) <= 40
        assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Usage: trt-helper " + " ".join(words))


def test_help_lists_every_command_and_the_exit_statuses():
    shown = ok("--help").out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert all(f"{status} " in shown for status in (0, 1, 2, 3, 4, 5, 70, 130))


def test_version_is_one_line():
    assert ok("--version").out == f"trt-helper {trt_helper.__version__}\n"


def test_a_command_that_is_misspelt_is_a_usage_error():
    misused("locte", "model.onnx", says="No such command 'locte'. Did you mean 'locate'?")
    assert run().status == 2


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("doctor", "--help"), ("locate", "--help")])
def test_help_imports_nothing_heavy(words):
    """Half a second is what a user notices; each of these libraries alone takes a good part of it."""
    code = (
        "import sys\nfrom trt_helper.cli.main import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    sys.stderr.write(' '.join(name for name in {HEAVY} if name in sys.modules))\n    raise\n"
    )
    process = in_process(code, *words)
    _, imported = process.communicate(timeout=30)
    assert process.returncode == 0
    assert imported == ""


def test_the_module_runs_as_the_command_does():
    words = [sys.executable, "-m", "trt_helper", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == ok("--version").out


# --------------------------------------------------------------------------------------- all the others


NAMES = ("[bold]pow[/bold]", "\x1b[31mred\x07", "two\nlines", "\u202eevil\u2066", "n" * 10_000)


@pytest.mark.parametrize("terminal", [False, True])
def test_names_reach_the_terminal_as_text_and_not_as_commands(monkeypatch, terminal):
    """On a terminal the progress bar shows names as well; rich then writes escapes of its own, but none of these."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    path, samples = save_overflowing(names=NAMES)
    commands = [
        ("locate", path, "-i", samples),
        ("compare", path, "-i", samples),
        ("inspect", path, "--layers"),
        ("convert", path, "-c", "fp32_layers.yaml", "--no-engine", "--typed-onnx", "typed.onnx"),
    ]
    for words in commands:
        result = run(*words)
        shown = result.out + result.err
        assert result.status == (1 if words[0] == "compare" else 0), result.err
        assert "\x1b[31mred" not in shown
        assert not {"\x07", "\u202e", "\u2066"} & set(shown)
        assert "n" * 1000 not in shown
        assert "two\nlines" not in shown
        if words[0] != "convert":
            assert "[bold]pow[/bold]" in result.out
    assert ok("inspect", path, "--json").json["layers"][3]["name"] == NAMES[3]
    assert ok("inspect", path, "--json").out.isascii()
    assert read_config(Path("fp32_layers.yaml")).fp32_layers == NAMES[:4]


@pytest.mark.parametrize(
    "name", ["", "plain", "é漢字🙂", "[bold]", "a" * 5000, "\x1b[2J", "\x9b2J", "a\tb", "\u200b", "\ud800"]
)
def test_a_shown_name_is_short_and_printable(name):
    shown = plain(name)
    assert len(shown) <= LONGEST_NAME + 1
    assert shown.isprintable()
    if name.isprintable() and len(name) <= LONGEST_NAME:
        assert shown == name


def test_an_error_of_ten_thousand_characters_is_cut():
    saved(clean())
    Path("plan.yaml").write_text(f"FP32_LAYERS_FOR_FP16: [{'n' * 10_000}]")
    result = refused("compare", "model.onnx", "-c", "plan.yaml", says="the model has no layer named 'nnn")
    assert len(result.err) < 1500


def test_a_bug_shows_its_traceback_and_ends_with_70(monkeypatch):
    def broken():
        raise RuntimeError("not meant to be")

    monkeypatch.setattr(machine, "abilities", broken)
    result = run("doctor")
    assert (result.status, result.out) == (70, "")
    assert "RuntimeError: not meant to be" in result.err
    assert result.err.endswith("error: this is a bug in trt-helper\n  fix: please report it with the lines above\n")


def test_too_little_memory_is_no_bug(monkeypatch):
    def greedy():
        raise MemoryError

    monkeypatch.setattr(machine, "abilities", greedy)
    refused("doctor", says="out of memory", fix="fewer or smaller samples")


def test_a_terminal_without_unicode_gets_the_result_all_the_same():
    path, samples = save_overflowing(names=("漢字", "é", "a", "s", "d"))
    result = run_in_process("locate", path, "-i", samples, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.status == 0, result.err
    assert "4 of 5 layers stay in FP32" in result.out


def test_a_reader_that_leaves_early_gets_no_traceback():
    saved(clean())
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", MAIN, "inspect", "model.onnx", "--json"]
    result = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert result.returncode != 70
    assert "Traceback" not in result.stderr
    assert "bug" not in result.stderr


def test_nothing_is_sent_away_and_no_temporary_file_stays(tmp_path):
    """ONNX Runtime 1.29 and later report the model's name and hashes, and keep a session file, unless told not to."""
    saved(clean(batch=1))
    save_input("x.npz", x=np.ones((1, 4), np.float32))
    result = run_in_process("locate", "model.onnx", "-i", "x.npz")
    assert result.status == 0, result.err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_data_loader_that_is_interrupted_is_told_in_two_lines():
    saved(clean())
    Path("feed.py").write_text("def load_data():\n    raise KeyboardInterrupt\n")
    result = run("compare", "model.onnx", "--data-loader-script", "feed.py")
    assert result.status == 130
    assert two_lines(result.err) == ("interrupted", "run the same command again")
