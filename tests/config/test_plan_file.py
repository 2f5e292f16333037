"""fp32_layers.yaml: what it may say, what it may not, and that it reads back as it was written."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.command_line import clean as clean_model
from support.command_line import refused, run, saved, two_lines

from trt_helper.config.plan_file import (
    KEYS,
    Config,
    model_path,
    per_output,
    read_config,
    require_same_model,
    write_config,
)
from trt_helper.errors import ConfigError, OutputError
from trt_helper.values import Rewrite, Statistic, Tolerance

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


SAME_FOLDER = [HealthCheck.function_scoped_fixture]  # every example writes the file anew


NAMES = ["", "a\nb", "- x", "a: b", "# c", "'", '"', "{x}", "*a", "&a", "!tag", "null", "1e3", "2020-01-01", "=", "<<"]


ODD = [
    *NAMES,
    "\x85",
    "\u202eevil",
    "\x1b[31m",
    "\x00",
    "\x85\u2028\ufeff",
    "🙂",
    " x ",
    "n" * 10_000,
    "a b " * 100,
    "\t\r\n",
]


pytestmark = pytest.mark.usefixtures("own_folder")


def config(text):
    """Read a config with this content."""
    Path("plan.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(Path("plan.yaml"))


def wrong(text):
    """The error of a config with this content."""
    with pytest.raises(ConfigError) as caught:
        config(text)
    error = caught.value
    assert error.message.startswith("plan.yaml")
    assert error.fix
    assert len(error.message) < 400
    return error


def test_the_list_of_layers_is_enough():
    found = config("FP32_LAYERS_FOR_FP16: [/norm/ReduceMean, /norm/Pow]\n")
    assert found.fp32_layers == ("/norm/ReduceMean", "/norm/Pow")
    assert found.tolerance == Tolerance()
    assert (found.model, found.sha256, found.exclude_tactics, found.evidence) == (None, "", (), {})


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "FP32_LAYERS_FOR_FP16:\n", "FP32_LAYERS_FOR_FP16: []\n", "atol:\n"]
)
def test_a_config_that_says_nothing_says_nothing(text):
    assert config(text) == Config(path=Path("plan.yaml"))


def test_a_number_is_a_number_however_yaml_reads_it():
    """YAML takes 1e-3, without a dot, for text."""
    assert isinstance(yaml.safe_load("1e-3"), str)
    found = config("atol: 1e-3\nrtol: '0.25'\n").tolerance
    assert (found.atol, found.rtol) == (0.001, 0.25)
    assert config("atol: 0\nrtol: 2\n").tolerance == Tolerance(atol=0.0, rtol=2.0)


def test_tolerances_may_be_given_per_output():
    found = config("atol: {'': 0.5, logits: 1e-2}\nrtol: {boxes: 0.125}\ncheck-error-stat: elemwise\n").tolerance
    assert (found.atol, found.rtol, found.stat) == (0.5, 0.001, Statistic.ELEMWISE)
    assert found.of("logits") == (0.01, 0.001)
    assert found.of("boxes") == (0.5, 0.125)
    assert found.of("another") == (0.5, 0.001)


def test_paths_are_relative_to_the_file():
    Path("plans").mkdir()
    Path("plans/plan.yaml").write_text("model: {path: ../models/m.onnx, sha256: 'ab'}")
    found = read_config(Path("plans/plan.yaml"))
    assert (found.model, found.sha256) == (Path("plans/../models/m.onnx"), "ab")
    assert config("model: m.onnx").model == Path("m.onnx")


def test_a_layer_that_is_named_twice_is_one_pin():
    assert config("FP32_LAYERS_FOR_FP16: [b, a, b]").fp32_layers == ("b", "a")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_come_with_trt_helper_are_sound(file):
    assert isinstance(read_config(file), Config)


def test_there_are_configs_that_come_with_trt_helper():
    assert (CONFIGS / "example.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        ("FP32_LAYERS_FOR_FP15: []", "unknown key 'FP32_LAYERS_FOR_FP15'", "did you mean 'FP32_LAYERS_FOR_FP16'?"),
        ("check_error_stat: max", "unknown key 'check_error_stat'", "did you mean 'check-error-stat'?"),
        ("zzz: 1", "unknown key 'zzz'", ", ".join(KEYS)),
        ("1: 2", "unknown key 1", "the keys are"),
        ("model: {pth: m.onnx}", "unknown key 'model.pth'", "path, sha256"),
        ("model: 5", "model must be a mapping, not int", "example.yaml"),
        ("model: {path: 5}", "model.path must be text, not 5", "quotes"),
        ("model: {path: m, sha256: 12}", "model.sha256 must be text, not 12", "quotes"),
        ("FP32_LAYERS_FOR_FP16: /norm/Pow", "must be a list of layer names, not '/norm/Pow'", "- /norm/Pow"),
        ("FP32_LAYERS_FOR_FP16: {a: 1}", "must be a list of layer names, not {'a': 1}", "one name a line"),
        ("FP32_LAYERS_FOR_FP16: [a, 1]", "holds 1, which is no layer name", "in quotes"),
        ("FP32_LAYERS_FOR_FP16: [null]", "holds None, which is no layer name", "in quotes"),
        ("FP32_LAYERS_FOR_FP16: [2020-01-01]", "holds datetime.date(2020, 1, 1), which is no layer", "in quotes"),
        ("TRT_EXCLUDE_TACTIC: {}", "TRT_EXCLUDE_TACTIC must be a list", "{layer, tactic"),
        ("TRT_EXCLUDE_TACTIC: [x]", "an entry of TRT_EXCLUDE_TACTIC must be a mapping, not str", "example.yaml"),
        ("TRT_EXCLUDE_TACTIC: [{layr: x}]", "has the unknown key 'layr'", "layer, tactic, kernel, tensorrt, gpu"),
        ("TRT_EXCLUDE_TACTIC: [{tactic: 5}]", "names no layer", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: [a], tactic: 5}]", "names no layer", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a}]", "says neither tactic nor kernel of layer 'a'", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a, kernel: ''}]", "says neither tactic nor kernel", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a, tactic: ''}]", "has the tactic '', which is no number", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a, tactic: x1}]", "has the tactic 'x1', which is no number", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a, kernel: 5}]", "kernel, tensorrt or gpu that is no text", "its keys are"),
        ("TRT_EXCLUDE_TACTIC: [{layer: a, tactic: 1, gpu: [b]}]", "gpu that is no text", "its keys are"),
        ("atol: small", "atol is 'small'", "a number of at least 0"),
        ("atol: -1", "atol is -1", "a number of at least 0"),
        ("atol: .nan", "atol is nan", "a number of at least 0"),
        ("rtol: .inf", "rtol is inf", "a number of at least 0"),
        ("rtol: true", "rtol is True", "a number of at least 0"),
        ("rtol: [1]", "rtol is [1]", "a number of at least 0"),
        ("atol: {y: x}", "atol is 'x'", "a number of at least 0"),
        (f"atol: 1{'0' * 400}", "atol is 1000", "a number of at least 0"),
        (f"atol: 0x{'f' * 5000}", "atol is a huge number", "a number of at least 0"),
        ("check-error-stat: mode", "check-error-stat is 'mode'", "max, mean, median, elemwise"),
        ("check-error-stat: [max]", "check-error-stat is ['max']", "one of"),
        ("evidence: [1]", "evidence must be a mapping, not list", "example.yaml"),
        ("- a", "the file must be a mapping, not list", "example.yaml"),
        ("text", "the file must be a mapping, not str", "example.yaml"),
        (f"FP32_LAYERS_FOR_FP16: {'n' * 10_000}", "must be a list of layer names, not 'nnn", "one name a line"),
        (f"? {'k' * 10_000}\n: 1", "unknown key 'kkk", "the keys are"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(text, says, fix):
    error = wrong(text)
    assert says in error.message
    assert fix in error.fix


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "at line 1"),
        ("atol: 1\n\trtol: 1", "at line 2: found character '\\t'"),
        ("atol: 1\natol: 2", "at line 2: 'atol' stands there twice"),
        ("model: {path: a, path: b}", "at line 1: 'path' stands there twice"),
        ("atol: 1\n---\natol: 2", "at line 2: but found another document"),
        ("atol: !!int x", "ValueError"),
        ("atol: !!bool x", "KeyError"),
        ("atol: 2001-99-99", "ValueError"),
        (f"atol: {'1' * 5000}", "ValueError"),
        ("? {a: 1}\n: 2", "plan.yaml is not valid YAML"),
        ("evidence: " + "[" * 5000, "RecursionError"),
        (b"atol: \xff", "UnicodeDecodeError"),
        (b"\x00", "ReaderError"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text, says):
    error = wrong(text)
    assert "is not valid YAML" in error.message
    assert says in error.message


@pytest.mark.parametrize("tag", ["object/apply:pathlib.Path.touch", "object/new:pathlib.Path", "name:os.system"])
def test_python_tags_are_never_executed(tag):
    error = wrong(f"atol: !!python/{tag} [sprung]")
    assert f"could not determine a constructor for the tag 'tag:yaml.org,2002:python/{tag}'" in error.message
    assert not Path("sprung").exists()


def test_aliases_are_refused_before_they_multiply():
    """Nine lines of nine aliases each are 400 million names, and a merge key copies them."""
    lists = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    merges = "a: &a {x: 1, y: 2}\n" + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    started = time.monotonic()
    for text in (lists, merges, "evidence: &a {x: *a}", f"FP32_LAYERS_FOR_FP16: [*i]\n{lists}"):
        assert "aliases are not allowed here" in wrong(text).message or "undefined alias" in wrong(text).message
    assert time.monotonic() - started < 2


def test_a_huge_file_is_refused_before_it_is_read():
    with Path("plan.yaml").open("wb") as stream:
        stream.truncate(9 << 20)
    with pytest.raises(ConfigError, match=r"plan\.yaml is too large for a config"):
        read_config(Path("plan.yaml"))


def test_a_missing_file_and_a_folder_are_told_apart():
    for name, says in (("no.yaml", "no.yaml does not exist"), ("..", ".. is a folder")):
        refused("compare", "-c", name, says=says, fix="make it with `trt-helper locate MODEL.onnx -o FILE.yaml`")


@settings(max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(st.binary(max_size=60) | st.text("aAtol:[]{}-&*!?|>'\"#%@` \n\t0159.,<~", max_size=60).map(str.encode))
@example(b"!!timestamp x: 1")
def test_any_bytes_are_a_config_or_a_config_error(data):
    try:
        found = config(data)
    except ConfigError as error:
        shown = error.message
        assert shown.startswith("plan.yaml")
    else:
        assert isinstance(found, Config)


def test_escapes_in_a_config_do_not_reach_the_terminal():
    saved(clean_model())
    Path("plan.yaml").write_text('"\\e[31m\\u202ekey": 1\n')
    result = run("compare", "model.onnx", "-c", "plan.yaml")
    assert result.status == 3
    error, _ = two_lines(result.err)
    assert "unknown key '\\x1b[31m\\u202ekey'" in error


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(ODD)


numbers = st.floats(0, 1e30)


tolerances = st.builds(
    Tolerance,
    numbers,
    numbers,
    st.sampled_from(Statistic),
    st.dictionaries(names.filter(bool), st.tuples(numbers, numbers)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(st.lists(names, unique=True, max_size=6), tolerances, st.dictionaries(names, names, max_size=3), names)
@example(ODD, Tolerance(1e-5, 0.0), {name: name for name in ODD}, "x")
def test_a_config_reads_back_as_it_was_written(layers, tolerance, evidence, kernel):
    tactics = ({"layer": "a", "tactic": 5, "kernel": kernel},)
    written = Config(
        model=Path("models/m.onnx"),
        sha256=hashlib.sha256().hexdigest(),
        fp32_layers=tuple(layers),
        exclude_tactics=tactics,
        tolerance=tolerance,
        evidence={"layers": evidence},
    )
    path = Path("plans/plan.yaml")
    write_config(written, path)
    found = read_config(path)
    assert found.fp32_layers == written.fp32_layers
    assert found.tolerance == tolerance
    assert found.exclude_tactics == tactics
    assert found.evidence == written.evidence
    assert found.sha256 == written.sha256
    assert found.model.resolve() == written.model.resolve()


def test_a_written_config_is_made_to_be_read_by_people():
    write_config(Config(fp32_layers=("/norm/Pow", "漢字"), tolerance=Tolerance(1e-5, 1e-3)), Path("plan.yaml"))
    text = Path("plan.yaml").read_text()
    assert text.startswith("# ")
    assert "- /norm/Pow\n- 漢字\n" in text
    assert "atol: 1.0e-05\nrtol: 0.001\n" in text


def test_the_path_of_the_model_leads_from_the_config_to_the_model():
    write_config(Config(model=Path("models/m.onnx")), Path("plans/deep/plan.yaml"))
    assert "path: ../../models/m.onnx" in Path("plans/deep/plan.yaml").read_text()


def test_a_config_that_cannot_be_written_leaves_nothing():
    Path("file").write_text("old")
    with pytest.raises(OutputError, match=r"file/plan\.yaml cannot be written"):
        write_config(Config(), Path("file/plan.yaml"))
    Path("plan.yaml").mkdir()
    with pytest.raises(OutputError, match=r"plan\.yaml is a folder"):
        write_config(Config(), Path("plan.yaml"))
    assert sorted(path.name for path in Path().iterdir()) == ["file", "plan.yaml"]
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_plan_for_another_model_is_refused_and_one_without_a_hash_is_not():
    require_same_model(Config(sha256="a" * 64), "a" * 64, Path("m.onnx"))
    require_same_model(Config(), "b" * 64, Path("m.onnx"))
    with pytest.raises(ConfigError, match=r"m\.onnx has sha256 bbbbbbbbbbbb, not aaaaaaaaaaaa"):
        require_same_model(Config(sha256="a" * 64), "b" * 64, Path("m.onnx"))


def test_the_model_that_is_given_goes_before_the_one_in_the_config():
    assert model_path(Config(model=Path("a")), Path("b")) == Path("b")
    assert model_path(Config(model=Path("a")), None) == Path("a")
    with pytest.raises(ConfigError, match="names no model"):
        model_path(Config(path=Path("plan.yaml")), None)


def test_a_tolerance_on_the_command_line_may_name_an_output_with_a_colon():
    assert per_output(["1e-2", "logits:0:0.5"], "--atol", 1e-3) == {"": 0.01, "logits:0": 0.5}
    assert per_output([], "--atol", 1e-3) == {"": 1e-3}


def test_the_model_of_a_config_in_another_folder_is_named_as_short_as_it_can_be(tmp_path, monkeypatch):
    """Not where a symbolic link makes `configs/..` another folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "models", "elsewhere/configs", "elsewhere/models"):
        Path(folder).mkdir(parents=True)
    for file in ("models/m.onnx", "elsewhere/models/m.onnx"):
        Path(file).touch()
    assert model_path(Config(path=Path("configs/c.yaml"), model=Path("configs/../models/m.onnx")), None) == Path(
        "models/m.onnx"
    )
    Path("linked").symlink_to("elsewhere/configs")
    through = Path("linked/../models/m.onnx")
    assert model_path(Config(path=Path("linked/c.yaml"), model=through), None) == through


# ------------------------------------------------------------------------------------------------------------- rewrites


def test_rewrites_survive_the_config(tmp_path):
    path = tmp_path / "plan.yaml"
    rewrites = (Rewrite("constants", "mask"), Rewrite("norms", "/norm/Div", "LayerNormalization"))
    write_config(Config(rewrites=rewrites, bf16_layers=("/up",)), path)
    again = read_config(path)
    assert again.rewrites == rewrites
    assert again.bf16_layers == ("/up",)


@pytest.mark.parametrize("number", ["6.104e-05", "'6.104e-05'", "0.00006104"])
def test_an_epsilon_that_was_raised_survives_the_config_with_and_without_quotes(number, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(f"cures:\n- {{constants: eps, as: {number}}}\n")
    rewrites = read_config(path).rewrites
    assert rewrites == (Rewrite("constants", "eps", "6.104e-05"),)
    write_config(Config(rewrites=rewrites), path)
    assert read_config(path).rewrites == rewrites


@pytest.mark.parametrize(
    "entry",
    [
        "norms: x",
        "{pins: x}",
        "{constants: 3}",
        "{bf16: a, constants: b}",
        "x",
        "{norms: x, as: 3}",
        "{bf16: x, as: '1'}",
        "{}",
    ],
)
def test_a_rewrite_that_is_none_is_refused(entry, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(f"cures:\n- {entry}\n")
    with pytest.raises(ConfigError, match="cures"):
        read_config(path)
