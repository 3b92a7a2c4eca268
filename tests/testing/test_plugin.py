"""The pytest plugin as a user's project has it: found by itself, and run by anyio's."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def outcomes(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=300)
    found = [line for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
    return sorted(one.partition(" - ")[0].replace("test_users.py::", "") for one in found), done.stdout + done.stderr


def test_a_users_project_needs_no_more_than_the_fixture(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_users.py").write_text(TESTS)
    found, output = outcomes(tmp_path)
    assert found == [
        "PASSED test_a_timeout[asyncio]",
        "PASSED test_a_timeout[trio]",
        "PASSED test_in_real_time[asyncio]",
        "PASSED test_in_real_time[trio]",
        "PASSED test_on_trio_only[trio]",
    ], output


@pytest.mark.parametrize("settings, found", [("virtual_time_loops = asyncio", "asyncio"), ("", None)])
def test_the_loops_are_a_setting_and_an_unknown_one_is_refused(tmp_path, settings, found):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{settings}\n")
    marked = "" if settings else '@pytest.mark.virtual_time_loops("uvloop")\n'
    (tmp_path / "test_users.py").write_text(f"import pytest\n{marked}async def test_it(virtual_time): pass\n")
    passed, output = outcomes(tmp_path)
    if found is None:
        assert "virtual_time_loops: 'uvloop' is unknown; allowed: 'asyncio', 'trio'" in output
    else:
        assert passed == [f"PASSED test_it[{found}]"], output


def test_nothing_of_lanes_is_imported_before_a_test_asks_for_it(tmp_path):
    (tmp_path / "test_users.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    ours = [name for name in sys.modules if name.partition('.')[0] in ('lanes', 'locks', 'sqlite3')]\n"
        "    assert not ours\n"
    )
    passed, output = outcomes(tmp_path)
    assert passed == ["PASSED test_it"], output
