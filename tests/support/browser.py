"""A real browser, where there is one, and a page that is open in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRAWN = "html[data-drawn]"


@contextmanager
def running_browser() -> Iterator[object]:
    """A browser; skips the test where there is none, or no Playwright to drive it."""
    reason = "Playwright is not installed: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """One page; remembers what it said on the console and what it asked the network for."""

    def __init__(self, browser, path, *, width=1400, scheme="light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(DRAWN, timeout=30_000)

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.said.append(f"request for {url}")

    def rows(self) -> list[str]:
        """The names in the table of layers."""
        return self.page.locator("#layers tbody tr td:nth-child(2)").all_inner_texts()

    def picture(self, figure="#network") -> bytes:
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(250)
        return self.page.locator(f"{figure} canvas").screenshot()
