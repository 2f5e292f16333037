"""The report's page in a real browser, offline: figures, mouse, search, and no error on the console."""

from __future__ import annotations

import pytest
from support.browser import Tab, running_browser
from support.report_records import long_record, overflowing_record

from trt_helper.report.page import page
from trt_helper.report.read import read_record


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a small network and of one with 5,000 layers."""
    folder = tmp_path_factory.mktemp("browser")
    path = overflowing_record(folder)
    (folder / "small.html").write_text(page(read_record(path)))
    (folder / "large.html").write_text(page(long_record(path, 5000)))
    return folder


@pytest.fixture
def tab(browser, pages):
    opened = []

    def open_tab(name="small.html", **how):
        opened.append(Tab(browser, pages / name, **how))
        return opened[-1]

    yield open_tab
    for one in opened:
        assert one.said == []
        one.page.context.close()


@pytest.mark.parametrize("name", ["small.html", "large.html"])
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_the_page_draws_every_figure_within_its_width(tab, name, width, scheme):
    view = tab(name, width=width, scheme=scheme)
    assert view.page.locator(".plot canvas").count() == view.page.locator(".plot").count() == 6
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    for box in (plot.bounding_box() for plot in view.page.locator(".plot canvas").all()):
        assert 0 < box["width"] <= width


def test_dark_and_light_are_what_the_reader_asked_for(tab):
    def brightness(view, what):
        found = view.page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(int(number) for number in found.removeprefix("rgb(").rstrip(")").split(",")[:3]) / 3

    light, dark = tab(scheme="light"), tab(scheme="dark")
    assert brightness(light, "backgroundColor") > 200 + brightness(light, "color")
    assert brightness(dark, "color") > 200 + brightness(dark, "backgroundColor")
    before = light.picture()
    light.page.emulate_media(color_scheme="dark")
    light.page.wait_for_timeout(800)
    assert light.picture() != before  # the figures are drawn again


@pytest.mark.parametrize("name", ["small.html", "large.html"])
def test_hovering_tells_the_numbers_of_a_layer(tab, name):
    view = tab(name)
    view.page.locator("#network").scroll_into_view_if_needed()
    box = view.page.locator("#network canvas").bounding_box()
    view.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    view.page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    tip = view.page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=5000)
    cells = dict(zip(tip.locator("td.key").all_inner_texts(), tip.locator("td.value").all_inner_texts(), strict=True))
    assert cells["layer"].startswith("/norm/" if name == "small.html" else "/model/layers.")
    assert float(cells["error that arrives"]) > 0
    assert "largest read" in cells


def test_searching_marks_the_layers_and_filters_the_table(tab):
    view = tab()
    plain = view.picture()
    view.page.fill("#query", "reduce")
    assert view.rows() == ["/norm/ReduceMean"]
    assert view.page.inner_text("#count") == "1 of 5"
    marked = view.picture()
    assert marked != plain
    view.page.fill("#query", "</script><b>")
    assert view.rows() == []
    view.page.fill("#query", "")
    assert len(view.rows()) == 5
    assert view.picture() != marked


def test_clicking_a_row_marks_its_layer_in_the_figures(tab):
    view = tab()
    plain = {figure: view.picture(figure) for figure in ("#network", "#ranges")}
    view.page.click("#layers-details summary")
    view.page.locator("#layers tbody tr").nth(2).click()
    assert view.page.locator("#layers tbody tr.chosen td").first.inner_text() == "2"
    for figure, picture in plain.items():
        assert view.picture(figure) != picture


def test_a_long_network_can_be_zoomed_moved_and_paged(tab):
    view = tab("large.html")
    whole = view.picture("#ranges")
    view.page.click('button[data-zoom="0.5"]')
    half = view.picture("#ranges")
    view.page.click('button[data-move="0.5"]')
    moved = view.picture("#ranges")
    assert len({whole, half, moved}) == 3
    view.page.click('button[data-zoom="all"]')
    assert view.picture("#ranges") == whole
    view.page.click("#layers-details summary")
    assert len(view.rows()) == 100
    view.page.click("#more")
    assert len(view.rows()) == 1100
    view.page.fill("#query", "layers.499/")
    assert len(view.rows()) == 10


def test_the_error_can_be_shown_relative_to_the_layer(tab):
    view = tab("large.html")
    plain = view.picture()
    view.page.check("#relative")
    relative = view.picture()
    assert relative != plain
    view.page.uncheck("#relative")
    assert view.picture() != relative


def test_tables_unfold(tab):
    view = tab()
    assert not view.page.locator("#trials").is_visible()
    view.page.click("text=trials as a table")
    assert view.page.locator("#trials").is_visible()
