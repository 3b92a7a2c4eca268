"""`sidecar="auto"`: no lock files for sessions that no foreign gateway knows; their holders are named all the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from lanes import SessionLayout
from lanes.layout import is_own_name
from locks import LeaseTimeout, LockRegistry, _os
from locks.doctor.inspection import inspect
from locks.sidecar import guards
from runtime import Supervisor
from tests.lock_files import foreign, ours
from tests.supervised import path_of


@pytest.fixture
def made(monkeypatch):
    """The files beside sessions that were created, by the ends of their names."""
    real, found = _os.open, []

    def open_(path, flags, *mode):
        if flags & os.O_CREAT and str(path).endswith((".lock", ".turn")):
            found.append(os.path.splitext(path)[1])
        return real(path, flags, *mode)

    monkeypatch.setattr(_os, "open", open_)
    return found


async def note(ctx):
    await ctx.session.append({"n": 1})


LAYOUTS: dict[str, dict[str, Any]] = {
    "own": {},
    "their names": {"path": lambda key: f"{key}.jsonl"},
    "their header": {"header": lambda key: {"type": "session", "id": key}},
}


@pytest.mark.parametrize("sidecar", ["auto", True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_lock_files_are_left_out_only_where_names_and_header_are_ours(virtual, tmp_path, made, layout, sidecar):
    registry = LockRegistry(sidecar=sidecar)
    async with Supervisor(SessionLayout(tmp_path, **LAYOUTS[layout]), registry=registry) as sup:
        await sup.run("session:a", note)
    assert made == ([".lock"] if sidecar is True or (sidecar == "auto" and layout != "own") else [])


async def test_what_else_a_registry_writes_has_lock_files(virtual, tmp_path, made):
    async with Supervisor(tmp_path) as sup:
        await sup.registry.append(path_of(sup, "a"), {"n": 1})
        assert made == []
        for other in (tmp_path / "a.jsonl", tmp_path / "b-0123456789abcdef.jsonl.archived"):
            await sup.registry.append(other, {"n": 1})
            assert made.pop() == ".lock"
        await LockRegistry().append(path_of(sup, "a"), {"n": 1})
        assert made == [".lock"]


async def test_a_foreign_lock_file_is_waited_for_beside_an_adopted_session_only(virtual, tmp_path):
    for layout, waits in (("own", False), ("their names", True)):
        async with Supervisor(SessionLayout(tmp_path / layout, **LAYOUTS[layout])) as sup:
            beside = path_of(sup, "a").with_suffix(".jsonl.lock")
            beside.parent.mkdir(exist_ok=True)
            beside.write_bytes(foreign(os.getppid()))
            run = sup.submit("session:a", note)
            with anyio.move_on_after(5):
                await run.wait()
            assert (run.outcome is None) == waits
            beside.unlink()
            await run.result()


@pytest.mark.failure("D3", "C6")
async def test_the_conductor_names_who_holds_the_write_lease_of_a_session_without_a_lock_file(virtual, tmp_path):
    there, words = LockRegistry(), []
    there.leave_out(str(tmp_path), is_own_name)

    async def hold(ctx):
        async with ctx.session.lease():
            await anyio.sleep(1)
            seen = inspect(ctx.session.path)
            assert seen is not None and seen.write.holder is not None
            assert seen.write.holder.holder.run_id == ctx.run.id
            try:
                async with there.lease(ctx.session.path, wait_timeout=0):
                    pytest.fail("entered")
            except LeaseTimeout as error:
                words.append(str(error))

    async with Supervisor(tmp_path) as sup:
        run = sup.submit("session:a", hold)
        await run.result()
    (said,) = words
    assert f"another process holds it, while run {run.id} on lane session:a" in said


def test_a_conductor_in_another_process_counts_as_the_holder_and_this_process_does_not(tmp_path):
    path = str(tmp_path / "a.jsonl")
    for pid, counts in ((os.getppid(), True), (os.getpid(), False)):
        Path(path + ".turn").write_bytes(ours(pid=pid, starttime=None, runId=7))
        named = guards.Conductor().holder_elsewhere(path)
        assert named is not None and "run 7" in named.words
        assert (named.holder is not None) == counts
