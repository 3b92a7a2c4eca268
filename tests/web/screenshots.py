"""The pictures of the README: `python -m tests.web.screenshots docs/dashboard`, or `make screenshots`.

`lanes run stuck`, as a new user sees it: a call that hangs, then what ran when once it was stopped.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from runtime.web import serve
from runtime.web.guard import Guard
from tests.command import started
from tests.poll import eventually_sync
from tests.web.chromium import PATIENCE_S, launched

_SIZE = {"width": 1100, "height": 720}


def opened(browser: Browser, url: str, scheme: str) -> Page:
    """A page in light or dark."""
    page = browser.new_context(color_scheme=scheme, viewport=_SIZE).new_page()  # type: ignore[arg-type]  # light or dark
    page.set_default_timeout(PATIENCE_S * 1000)
    page.goto(url)
    return page


def main(directory: Path) -> None:
    """Make both."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "s.sock"
        with started("run", "stuck", "--sessions", Path(place) / "sessions", "--socket", path):
            eventually_sync(path.exists)
            with serve.listening("127.0.0.1", 0, "--port") as listener:
                server = serve.server_of(str(path), Guard(None, (), allow_control=True), show_content=False)
                with serve.beside(server, listener), launched() as (_, browser):
                    _take(browser, serve.url_of(listener, "127.0.0.1"), directory)


def _take(browser: Browser, url: str, directory: Path) -> None:
    page = opened(browser, url, "light")
    page.wait_for_selector("#part_running >> text=3 wait for it")
    page.wait_for_timeout(12_000)  # others come and go, for the second picture
    page.screenshot(path=directory / "now.png")
    page.click("[aria-label='Stop run 1']")
    page.wait_for_selector("main [role=status]")
    page.close()
    page = opened(browser, f"{url}timeline?window=30", "dark")
    page.wait_for_timeout(9_000)  # what waited behind it runs
    page.screenshot(path=directory / "timeline.png")
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
