"""Hostile names (markup, code, commands, endless text) stay text on the report's page and in its tables."""

from __future__ import annotations

import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.browser import Tab, running_browser
from support.command_line import everything, ok, own_folder, saved
from support.onnx_parts import constant, model, node, value

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
NAMES = {
    "html": SCRIPT,
    "breakout": "</script><!--<script>alert(1)//--></style></title>\"'><svg onload=alert(1)>",
    "template": "{{ 7*7 }}{% raw %}{# #}${7*7}`#{7*7}`",
    "vega": "datum['x'] + warn('x') \\' \\u0027 \"] [a.b](c) __proto__",
    "ansi": "\x1b[2J\x1b]0;owned\x07\x1b[31mred\x9b2J",
    "newline": "a\r\nb\x01\u2028c\u2029d\x0b\x85e",
    "bidi": "\u202egnp.exe\u2066\u200b\u200f\ufeff",
    "markup": "[bold red]x[/bold red][link=http://a]y[/link]",
    "long": "<b>" * 3334,
    "tame": "layer",
}
FILE_NAME = 60  # characters of a name that also names files


class Skeleton(HTMLParser):
    """The tags and attribute names of a page, its text, and what its attributes say."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.attributes = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        for name, said in attrs:
            self.attributes.setdefault(name, set()).add(said)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.tags.append(("comment", (data,)))


def write_run(name):
    """Search a model whose layers, tensors, modules and files all bear this name; returns the record's path.

    x / sqrt(mean(x^2) + eps) at |x| = 300, where the square passes 65504 and four layers are pinned.
    """
    square, mean, add, root, div = (f"{name}{i}" for i in range(5))
    x, y = f"in{name}", f"out{name}"
    proto = model(
        [
            node("Pow", [x, "two"], ["square"], square),
            node("ReduceMean", ["square"], ["mean"], mean, axes=[-1], keepdims=1),
            node("Add", ["mean", "eps"], ["shifted"], add),
            node("Sqrt", ["shifted"], ["root"], root),
            node("Div", [x, "root"], [y], div),
        ],
        [value(x, [name, 8])],
        [value(y, [name, 8])],
        [constant("two", np.float32(2)), constant("eps", np.float32(1e-5))],
    )
    for layer in proto.graph.node:
        layer.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", f"module{name}", layer.name]))
    part = name.replace("/", "_")[:FILE_NAME]
    Path("samples").mkdir()
    np.savez(f"samples/{part}.npz", **{x: np.float32([[300, -300] * 4])})
    path = saved(proto, f"{part}.onnx")
    ok("locate", f"./{path}", "-i", "samples", "-o", "plan.yaml")
    return Path("plan.run.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For every kind of name the folder of a run: its record, its page, and what `report` printed."""
    found = {}
    for kind, name in NAMES.items():
        with pytest.MonkeyPatch.context() as patch:
            own_folder(tmp_path_factory.mktemp(kind), patch)
            record = write_run(name)
            printed = ok("report", record, "-o", "page.html")
            changes = ok("compare", record, record)
            found[kind] = Path.cwd(), printed, changes
    return found


def page_of(runs, kind):
    return (runs[kind][0] / "page.html").read_text(encoding="utf-8")


HOSTILE = sorted(set(NAMES) - {"tame"})


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_record_keeps_the_name_as_it_is(runs, kind):
    """Scripts get the true name; only what is shown to people is cleaned."""
    record = json.loads((runs[kind][0] / "plan.run.json").read_text())
    assert record["fp32_layers"] == [f"{NAMES[kind]}{i}" for i in range(4)]
    assert list(record["after"]) == [f"out{NAMES[kind]}"]
    assert (runs[kind][0] / "plan.run.json").read_bytes().isascii()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_name_adds_no_tag_and_no_attribute(runs, kind):
    """The page of the same run under a tame name has the very same tags with the very same attributes."""
    tame, hostile = Skeleton(page_of(runs, "tame")), Skeleton(page_of(runs, kind))
    assert hostile.tags == tame.tags
    changed = {name for name in hostile.attributes if hostile.attributes[name] != tame.attributes[name]}
    assert changed <= {"title"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_name_is_shown_as_text(runs, kind):
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in NAMES[kind])
    texts = " ".join(" ".join(Skeleton(page_of(runs, kind)).texts).split())
    assert " ".join(shown[:60].split()) in texts


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_control_character_and_no_bidirectional_mark_is_in_the_page(runs, kind):
    """Those of the plotting library itself aside: only what the template and the record make is looked at."""
    page = re.sub(r"<script>.*?</script>", "", page_of(runs, kind), flags=re.DOTALL)
    assert len(page) > 5000
    assert {c for c in page if unicodedata.category(c)[0] == "C"} <= {"\n"}
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL).group(1)
    for text in strings(json.loads(data)):
        assert text.isprintable()


def strings(data):
    """Every string and every key in JSON data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, list):
        for item in data:
            yield from strings(item)
    elif isinstance(data, dict):
        yield from data
        for item in data.values():
            yield from strings(item)


def test_ten_thousand_characters_do_not_swell_the_page(runs):
    """Five layers, two tensors and a file bear the name of 10,000 characters."""
    assert len(page_of(runs, "long")) - len(page_of(runs, "tame")) < 50_000
    assert (
        max(len(word) for word in Skeleton(page_of(runs, "long")).texts if "alert" not in word and "<b>" in word) < 5000
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_name_does_nothing_to_the_terminal(runs, kind):
    _, printed, changes = runs[kind]
    for result in (printed, changes):
        for text in (result.out, result.err):
            assert {c for c in text if unicodedata.category(c)[0] == "C"} <= {"\n"}
            assert len(text) < 20_000
    assert "page.html" in printed.out


@pytest.mark.parametrize("kind", ["html", "ansi", "bidi", "newline", "long"])
def test_what_changed_between_two_runs_is_text_too(runs, tmp_path, monkeypatch, kind):
    """Every table of changes: other pins, causes, layers, samples, versions."""
    own_folder(tmp_path, monkeypatch)
    tame, hostile = (runs[name][0] / "plan.run.json" for name in ("tame", kind))
    record = json.loads(hostile.read_text())
    record["versions"] = {NAMES[kind]: NAMES[kind]}
    Path("b.json").write_text(json.dumps(record))
    shown = ok("compare", tame, "b.json").out
    assert {c for c in shown if unicodedata.category(c)[0] == "C"} <= {"\n"}
    assert len(shown) < 30_000
    assert "4 added, 4 removed" in shown
    assert ok("compare", tame, "b.json", "--json").out.isascii()


def test_a_run_of_hostile_names_leaves_only_the_files_that_were_requested(runs):
    for kind, (folder, _, _) in runs.items():
        found = {Path(path).name for path in everything(folder) if path.endswith((".json", ".yaml", ".html"))}
        assert found == {"plan.yaml", "plan.run.json", "page.html"}, kind


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def open_tab():
    """Opens a page in a real browser, where there is one."""
    with running_browser() as browser:
        yield lambda path: Tab(browser, path)


@pytest.mark.parametrize("kind", ["html", "breakout", "vega", "long"])
def test_a_name_does_nothing_in_a_browser(runs, open_tab, kind):
    """Not when it is drawn, nor when it is hovered, searched or clicked: no dialog, no console message, no element."""
    tab = open_tab(runs[kind][0] / "page.html")
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    before = tab.page.locator("img, svg, b, script").count()
    tab.page.fill("#query", NAMES[kind][:40])
    tab.page.wait_for_function("document.querySelectorAll('#layers tbody tr').length === 5")
    tab.page.locator("#network").scroll_into_view_if_needed()
    plot = tab.page.locator("#network canvas").bounding_box()
    tab.page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2)
    tab.page.mouse.move(plot["x"] + plot["width"] / 2 + 3, plot["y"] + plot["height"] / 2 + 3)
    tip = tab.page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=5000)
    assert NAMES[kind][:30] in tip.inner_text()
    tab.page.locator("#layers tbody tr").first.click()
    assert tab.page.locator("#layers tbody tr.chosen").count() == 1
    assert tab.page.locator("img, svg, b, script").count() == before
    assert tab.page.locator("#vg-tooltip-element img, #vg-tooltip-element b").count() == 0
    assert (dialogs, tab.said) == ([], [])
