"""A pytest plugin that plants the defect named by `LANES_PLANT`: `LANES_PLANT=no_grace pytest -p tests.planted.plugin`.

No code of the product reads that variable.
"""

from __future__ import annotations

import os

import pytest

from tests.planted import lanes, locks

NAME = os.environ["LANES_PLANT"]
DEFECTS = lanes if NAME in lanes.DEFECTS else locks


def pytest_configure() -> None:
    DEFECTS.DEFECTS[NAME]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"planted {NAME}: reached {DEFECTS.reached[NAME]} times")
