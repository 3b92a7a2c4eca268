"""The pytest plugin as a user's project has it: found by itself, and run by anyio's."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT
from tests.documents import blocks_of
from tests.planted.server import QUIET

TESTS = """
import anyio, pytest, sys
from lanes import LaneSpec, RunState, testing

async def sleeps(ctx, messages):
    await anyio.sleep_forever()

@pytest.fixture
async def sup(tmp_path):  # an async fixture is in virtual time too, wherever it is named
    async with testing.supervisor([LaneSpec("session:*", handler=sleeps, timeout=300)]) as sup:
        yield sup

async def test_a_timeout(sup, virtual_time):
    run = sup.post("session:ann", "hello")
    await sup.advance(300)
    assert run.state is RunState.TIMED_OUT
    assert virtual_time.now() == anyio.current_time()

@pytest.mark.virtual_time_loops("trio")
async def test_on_trio_only(virtual_time):
    assert "trio" in sys.modules and anyio.get_current_task().name

@pytest.mark.anyio
async def test_in_real_time(anyio_backend):
    with pytest.raises(testing.NotVirtual):
        await testing.advance(1)
"""


BY_HAND = ("-p", "anyio", "-p", "runtime.testing.plugin", "--disable-plugin-autoload")


def passed(output):
    found = [line for line in output.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
    return sorted(one.partition(" - ")[0].replace("test_users.py::", "") for one in found)


def test_a_users_project_needs_no_more_than_the_fixture(tmp_path):
    """One project for all, since each is a Python of its own: these tests, and those of `docs/testing.md`."""
    page = "\n\n".join(block.code for block in blocks_of((ROOT / "docs" / "testing.md").read_text("utf-8")))
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nstrict = true\n")
    (tmp_path / "test_page.py").write_text(page)
    (tmp_path / "conftest.py").write_text("import sys\nassert not {'lanes', 'locks', 'sqlite3'} & sys.modules.keys()\n")
    (tmp_path / "test_users.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    of_page = [one for one in passed(done.stdout) if "test_page.py" in one]
    assert [one.partition(" ")[0] for one in of_page] == ["PASSED"] * 2 * page.count("async def test_"), done.stdout
    assert [one for one in passed(done.stdout) if one not in of_page] == [
        "PASSED test_a_timeout[asyncio]",
        "PASSED test_a_timeout[trio]",
        "PASSED test_in_real_time[asyncio]",
        "PASSED test_in_real_time[trio]",
        "PASSED test_on_trio_only[trio]",
    ], done.stdout + done.stderr


def test_the_loops_are_a_setting_and_an_unknown_one_is_refused(tmp_path, planting):
    (tmp_path / "pytest.ini").write_text("[pytest]\nvirtual_time_loops = asyncio\n")
    (tmp_path / "test_users.py").write_text("async def test_it(virtual_time): pass\n")
    marked = '@pytest.mark.virtual_time_loops("uvloop")\nasync def test_other(virtual_time): pass\n'
    (tmp_path / "test_wrong.py").write_text(f"import pytest\n{marked}")
    options = ("-q", "-rA", "-p", "no:cacheprovider", "--continue-on-collection-errors", *BY_HAND, *QUIET)
    done = planting.run("pytest", *options, str(tmp_path), cwd=tmp_path)
    assert passed(done.stdout) == ["ERROR test_wrong.py", "PASSED test_it[asyncio]"], done.output
    assert "virtual_time_loops: 'uvloop' is unknown; allowed: 'asyncio', 'trio'" in done.output
