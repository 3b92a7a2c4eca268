"""A real browser: Debian's Chromium, driven by Playwright on a thread of its own, since its calls block.

    await chromium.do(lambda page: page.goto(url))

A machine without it, or without Playwright, skips what needs it; with `LANES_CI` set, as `.ci/run` does, that fails.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import pytest
from anyio import to_thread

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Playwright

T = TypeVar("T")
PROGRAMS = ("chromium-headless-shell", "chromium")
"""The one without windows starts in half the time."""
PATIENCE_S = 60.0
"""Until what is awaited on a page will not come any more, on however busy a machine."""


def program() -> str | None:
    """Where Chromium is."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@functools.cache
def missing() -> str | None:
    """What tests with a browser lack on this machine."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"Playwright cannot be imported ({error}): pip install playwright"
    if program() is None:
        return f"there is no Chromium: none of {', '.join(PROGRAMS)} is on the path (apt-get install {PROGRAMS[0]})"
    return None


def fail_or_skip() -> None:
    """Skip a test that needs a browser where there is none; fail it with `LANES_CI` set."""
    if (what := missing()) is None:
        return
    if os.environ.get("LANES_CI"):
        pytest.fail(f"{what}; LANES_CI is set, so that is no reason to skip", pytrace=False)
    pytest.skip(what)


@contextmanager
def launched() -> Iterator[tuple[Playwright, Browser]]:
    """A browser, for the thread that calls."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield playwright, browser
        finally:
            browser.close()


class Chromium:
    """One browser, and in it one page at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "chromium")
        self._launched = launched()
        self._browser = self._thread.submit(self._launched.__enter__).result()[1]
        self._page: Page | None = None
        self.complaints: list[str] = []
        """What the page has complained about, or has done that no page of ours does."""

    def close(self) -> None:
        """End the browser. Repeatable."""
        self._thread.submit(self._launched.__exit__, None, None, None).result()
        self._thread.shutdown()

    async def do(self, work: Callable[[Page], T]) -> T:
        """Do something with the page, beside the event loop of the test. A checkpoint.

        Raises:
            playwright.sync_api.Error: whatever `work` raises.
        """
        job = self._thread.submit(lambda: work(self._shown()))
        return await to_thread.run_sync(job.result, abandon_on_cancel=True)

    def leave(self) -> None:
        """Close the page, with all that it keeps. Blocks for a moment."""

        def close() -> None:
            if self._page is not None:
                self._page.context.close()
            self._page = None

        self._thread.submit(close).result()

    def _shown(self) -> Page:
        if self._page is None:
            self._page = page = self._browser.new_context().new_page()
            page.set_default_timeout(PATIENCE_S * 1000)
            page.on("dialog", self._dismiss)
            page.on("pageerror", lambda error: self._note("error", str(error)))
            page.on("console", lambda said: self._note(said.type, said.text))
            page.on("request", lambda request: self._look(request.url))
        return self._page

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _note(self, kind: str, text: str) -> None:
        # A page whose process is away is told so by a status, which the browser notes as an error.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.complaints.append(f"on the console: {text}")

    def _look(self, url: str) -> None:
        if urlsplit(url).hostname != "127.0.0.1" and not url.startswith("data:,"):
            self.complaints.append(f"a request to {url}")
