"""What tests of this folder share: a pytest of its own, with this project's settings."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable

import pytest

from tests import ROOT
from tests.planted.server import QUIET, Server

PREAMBLE = """
import asyncio, os, socket, subprocess, threading, time, warnings
import anyio, pytest, trio
from anyio import to_thread
from tests import blocking
"""

OPTIONS = (
    *("-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "anyio", "--disable-plugin-autoload"),
    *QUIET,
)

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, planting: Server) -> Run:
    """Run a test file in a process of its own, with this project's settings and `conftest.py`."""

    def run_file(source: str, *options: str) -> pytest.RunResult:
        pytester.makeconftest("import tests.conftest\nglobals().update(vars(tests.conftest))")
        pytester.makepyfile(PREAMBLE + textwrap.dedent(source))
        begun = time.monotonic()
        done = planting.run("pytest", *OPTIONS, f"--basetemp={pytester.path / 'temp'}", *options, cwd=pytester.path)
        took = time.monotonic() - begun
        return pytest.RunResult(done.code, done.stdout.splitlines(), done.stderr.splitlines(), took)

    return run_file
