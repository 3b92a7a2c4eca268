"""The build server has a Chromium, or it is red: it never skips what needs one."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.planted.server import QUIET

CHOSEN = ("tests/web/test_in_browser.py", "-q", "-k", "goes_away", "-p", "no:cacheprovider", *QUIET)


@pytest.mark.parametrize("ci, told", [("", "^SKIPPED .*{}"), ("1", "^{}.*; LANES_CI is set")])
def test_without_a_browser_its_tests_are_skipped_by_name_and_fail_on_the_build_server(planting, tmp_path, ci, told):
    done = planting.run("pytest", *CHOSEN, PATH=str(tmp_path), LANES_CI=ci)
    assert re.search(told.format("there is no Chromium: none of chromium"), done.stdout, re.MULTILINE), done.output
    assert (done.code == pytest.ExitCode.OK) == (not ci)


def test_the_build_server_installs_one():
    assert re.search(r"^  .* install .* chromium", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
