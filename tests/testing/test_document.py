"""`docs/testing.md` is a test file: it runs as that of a user, and every test of it passes on both event loops."""

from __future__ import annotations

from tests import ROOT
from tests.documents import blocks_of
from tests.planted.server import QUIET
from tests.testing.test_plugin import BY_HAND


def test_the_tests_of_the_document_pass_as_a_users_test_file(tmp_path, planting):
    text = (ROOT / "docs" / "testing.md").read_text("utf-8")
    code = "\n\n".join(block.code for block in blocks_of(text))
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nstrict = true\n")
    (tmp_path / "test_page.py").write_text(code)
    options = ("-q", "-p", "no:cacheprovider", *BY_HAND, *QUIET)
    done = planting.run("pytest", *options, str(tmp_path), cwd=tmp_path)
    assert done.code == 0, done.output
    assert f"{2 * code.count('async def test_')} passed" in done.stdout
