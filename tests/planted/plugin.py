"""A pytest plugin that plants the defect named by `LANES_PLANT`: `LANES_PLANT=no_grace pytest -p tests.planted.plugin`.

No code of the product reads that variable.
"""

from __future__ import annotations

import os

import pytest

from tests.planted import inbox, lanes, locks, process

NAME = os.environ["LANES_PLANT"]
(DEFECTS,) = (module for module in (inbox, lanes, locks, process) if NAME in module.DEFECTS)


def pytest_configure() -> None:
    DEFECTS.DEFECTS[NAME]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"planted {NAME}: reached {DEFECTS.reached[NAME]} times")
