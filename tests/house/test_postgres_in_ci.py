"""The build server has a PostgreSQL server and psycopg, or it is red: it never skips what needs them."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.planted.server import QUIET

CHOSEN = ("tests/postgres/test_server.py", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *QUIET)


@pytest.fixture
def without_a_server(tmp_path) -> dict[str, str]:
    """The environment of a machine that has no PostgreSQL."""
    return {"PGBIN": str(tmp_path), "LANES_CI": ""}


def test_without_a_server_the_modules_are_skipped_with_one_line_that_says_why(planting, without_a_server):
    done = planting.run("pytest", *CHOSEN, **without_a_server)
    assert re.search(r"SKIPPED \[1\] .*there is no PostgreSQL server: PGBIN has no initdb in", done.stdout), done.output
    assert re.search(r"^1 skipped", done.stdout, re.MULTILINE), done.output
    assert done.code == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_build_server_fails_without_a_server(planting, without_a_server):
    done = planting.run("pytest", *CHOSEN, **without_a_server | {"LANES_CI": "1"})
    assert re.search(r"there is no PostgreSQL server.*; LANES_CI is set", done.stdout), done.output
    assert done.code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def test_the_build_server_says_that_it_is_one():
    """Before it installs, too: `make` installs more there, such as the frameworks of the examples."""
    text = (ROOT / ".ci" / "run").read_text()
    said = re.search(r"^export LANES_CI=1$", text, re.MULTILINE)
    assert said is not None and said.start() < text.index("make .venv/.installed") < text.index("\nexec make test\n")
    installs = (ROOT / "Makefile").read_text()
    assert "EXTRAS := dev$(if $(LANES_CI),$(shell echo ,)frameworks)\n" in installs and "-e '.[$(EXTRAS)]'" in installs
