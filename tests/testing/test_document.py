"""`docs/testing.md` is a test file: it runs as that of a user, and every test of it passes on both event loops."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT
from tests.documents import blocks_of


def test_the_tests_of_the_document_pass_as_a_users_test_file(tmp_path):
    text = (ROOT / "docs" / "testing.md").read_text("utf-8")
    code = "\n\n".join(block.code for block in blocks_of(text))
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nstrict = true\n")
    (tmp_path / "test_page.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * code.count('async def test_')} passed" in done.stdout
