"""Several processes on one directory, without a database: a cancel and a look reach the others over their sockets."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from lanes import RunState
from runtime import Supervisor
from tests import ROOT

pytestmark = pytest.mark.backends("asyncio", "trio")

CHILD = textwrap.dedent(
    """
    import sys, time, anyio, anyio.to_thread
    from runtime import Supervisor

    async def hangs(ctx):
        await anyio.sleep_forever()

    async def main(backend, directory):
        async with Supervisor(directory, status_socket=True) as sup:
            one = sup.submit("main", hangs, session="s")
            two = sup.submit("main", hangs, session="s")
            other = sup.submit("main", hangs, session="t")
            while other.state != "running":
                await anyio.sleep(0.01)
            print("ready", flush=True)
            print((await one.wait()).reason, (await two.wait()).reason, other.state.value, sep=",", flush=True)
            await anyio.to_thread.run_sync(sys.stdin.readline)
            time.sleep(60)

    anyio.run(main, *sys.argv[1:], backend=sys.argv[1])
    """
)


@pytest.fixture
def sockets(monkeypatch):
    """A default place of sockets that is ours alone, with a short path."""
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield place


async def hangs(ctx):
    await anyio.sleep_forever()


async def until_it_fails(sup):
    while True:
        await sup.everywhere.runs()


async def test_a_cancel_and_a_look_reach_another_process_on_the_directory(tmp_path, sockets, anyio_backend_name):
    command = [sys.executable, "-c", CHILD, anyio_backend_name, str(tmp_path)]
    child = await anyio.to_thread.run_sync(
        partial(subprocess.Popen, command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    out: Any = child.stdout
    into: Any = child.stdin

    async def line():
        return (await anyio.to_thread.run_sync(out.readline)).strip()

    try:
        with anyio.fail_after(30):
            while await line() != "ready":
                assert child.poll() is None
            async with Supervisor(tmp_path, status_socket=True) as sup, Supervisor(tmp_path, exclusive=False) as plain:
                mine = sup.submit("main", hangs, session="u")
                seen = await sup.everywhere.runs(session="s")
                assert [(run.node, run.state) for run in seen] == [
                    (f"process {child.pid}", RunState.RUNNING),
                    (f"process {child.pid}", RunState.QUEUED),
                ]
                assert await sup.everywhere.find(3) is not None
                assert await plain.everywhere.cancel(session="s", queued=False, reason="stop") == 1
                assert await sup.everywhere.cancel(session="s", reason="stop") == 1
                assert mine.outcome is None
                while not (said := await line()).startswith("stop,"):
                    assert child.poll() is None
                assert said == "stop,stop,running"
                into.write("\n")
                into.flush()
                mine.cancel()
                with pytest.raises(TimeoutError, match=f"process {child.pid}: its event loop stands still"):
                    await until_it_fails(sup)
    finally:
        child.kill()
        await anyio.to_thread.run_sync(child.wait)
        out.close()
        into.close()
