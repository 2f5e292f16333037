"""The user's definition of a network: where it fails, two lines say so, and it has no network and no stdout."""

from __future__ import annotations

import json
import socket
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'trt-helper[export]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'trt-helper[export]'")

from support.command_line import MAIN, in_process, run  # noqa: E402
from support.export_cases import INPUT, export, refused, saved, source, weights  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("export_folder")]


FACTORIES = {
    "raises": ("raise ValueError('no such width')", "raises ValueError: no such width (bad.py, line 3, in make)"),
    "exits": ("import sys; sys.exit(0)", "calls sys.exit: 0 (bad.py, line 3, in make)"),
    "returns a tuple": ("return (1, 2)", "gives a tuple, not a torch.nn.Module"),
    "returns nothing": ("pass", "gives a NoneType, not a torch.nn.Module"),
}


@pytest.mark.parametrize("case", FACTORIES)
def test_a_factory_that_fails_is_named_with_its_own_frames(case):
    body, says = FACTORIES[case]
    source(f"\ndef make():\n    {body}\n", "bad.py")
    result = export(saved(weights()), model="bad.py:make")
    refused(result, says)
    assert "trt_helper" not in result.err
    assert "Traceback" not in result.err


def test_the_frames_of_neighbours_are_shown_too():
    source("def width(n):\n    return [][n]\n", "parts.py")
    source("import parts\n\ndef make():\n    return parts.width(3)\n", "bad.py")
    refused(export(saved(weights()), model="bad.py:make"), "(bad.py, line 4, in make; parts.py, line 2, in width)")


def test_a_file_that_cannot_be_imported_says_where():
    source("import no_such_library\n", "bad.py")
    refused(export(saved(weights()), model="bad.py:make"), "No module named 'no_such_library' (bad.py, line 1")
    source("def make(:\n", "bad.py")
    refused(export("c.pt", model="bad.py:make"), "is not Python")


def test_a_name_that_the_file_lacks_gets_the_nearest():
    refused(export(saved(weights()), model="net.py:Nett"), "net.py has no 'Nett'", "did you mean 'Net'?")


@pytest.mark.parametrize("model", ["net.py", "nothing.py:Net", ":Net"])
def test_a_model_that_names_nothing_is_a_usage_error(model):
    refused(export(saved(weights()), model=model), "--model", status=2)


def test_a_constructor_argument_that_does_not_exist_is_named():
    refused(export(saved(weights()), "--model-arg", "depth=3"), "unexpected keyword argument 'depth'", "--model-arg")


def test_what_the_factory_prints_goes_to_stderr():
    """By Python, by C and by a child process: stdout is one JSON object. In a process of its own, with real streams."""
    source(
        """
        import os, subprocess, sys
        from net import Net
        print("printed on import")

        def make():
            print("printed by the factory")
            os.write(1, b"written by C\\n")
            subprocess.run([sys.executable, "-c", "print('printed by a child')"])
            return Net()
        """,
        "loud.py",
    )
    saved(weights())
    words = (
        "export",
        "c.pt",
        "--model",
        "loud.py:make",
        *INPUT,
        "--json",
        "--exporter",
        "torchscript",
        "-o",
        "out.onnx",
    )
    process = in_process(MAIN, *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["verdict"] == "pass"
    for said in ("printed on import", "printed by the factory", "written by C", "printed by a child"):
        assert said in err


def test_a_factory_reaches_no_network():
    """A server of our own listens, and nobody comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        came = []
        threading.Thread(target=lambda: came.append(server.accept()), daemon=True).start()
        source(
            f"""
            import urllib.request
            def make():
                urllib.request.urlopen("http://127.0.0.1:{server.getsockname()[1]}/weights")
            """,
            "online.py",
        )
        refused(export(saved(weights()), model="online.py:make"), "no network here")
        assert not came
        with socket.create_connection(server.getsockname(), timeout=5):
            pass  # afterwards there is one again


def test_a_forward_that_fails_shows_the_users_frames():
    refused(
        export(saved(weights()), inputs=("--input", "x:2x5")),
        "(net.py, line 13, in forward)",
        "check --input",
    )


def test_a_forward_that_returns_no_tensor_is_said_to():
    source("from net import Net\nclass Bad(Net):\n    def forward(self, x):\n        return 'x'\n", "bad.py")
    refused(export(saved(weights()), model="bad.py:Bad"), "returns no tensor")


def test_an_output_that_is_the_checkpoint_or_the_definition_is_refused():
    saved(weights())
    for target in ("c.pt", "net.py"):
        result = run("export", "c.pt", "--model", "net.py:Net", *INPUT, "-o", target)
        assert result.status == 3
        assert "is what the result is made from" in result.err


def test_a_file_of_a_package_is_told_to_be_named_as_a_module():
    source("K = 2\n", "parts/other.py")
    source("from .other import K\n\ndef make():\n    return None\n", "parts/net.py")
    result = export(saved(weights()), model="parts/net.py:make")
    refused(result, "attempted relative import", fix="--model parts.net:make")


def test_a_torchscript_program_that_fails_shows_its_own_words():
    source(
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        if x.shape[0] != 3:\n            raise ValueError('a batch of three')\n        return x\n",
        "three.py",
    )
    spec = spec_from_file_location("three", Path("three.py").resolve())
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.jit.script(module.Net()).save("s.pt")
    refused(export("s.pt", model=None), "the module raises ValueError: a batch of three")
