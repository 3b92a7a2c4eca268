"""A full disk: what deletes sessions needs no room; what writes to them is refused, and says what would help."""

from __future__ import annotations

import errno
import os

import pytest
from anyio import fail_after, move_on_after

from lanes import LaneSpec
from locks import Fence, LockRegistry, TranscriptError, _os
from locks.doctor.inspection import inspect
from locks.doctor.mending import mend
from locks.engines.interface import Right
from runtime import Supervisor
from tests.disks import small_disk  # noqa: F401 -- a fixture
from tests.sessions_on_disk import DEAD, RECORD, beside, foreign, ours
from tests.supervised import path_of


async def keep(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})


@pytest.mark.failure("Z10")
@pytest.mark.parametrize("archive", [True, False], ids=["moved aside", "deleted"])
async def test_a_session_is_reset_on_a_full_disk_and_what_is_deleted_makes_room(small_disk, archive):  # noqa: F811
    disk, fill = small_disk
    lanes, registry = [LaneSpec("session:*", handler=keep)], LockRegistry(sidecar=True)
    async with Supervisor(disk, lanes=lanes, registry=registry) as sup:
        with fail_after(60):
            await sup.post("session:a", "x" * 20_000).result()
            fill(0)
            file = path_of(sup, "a")
            with pytest.raises(TranscriptError) as caught:
                await sup.post("session:a", "x" * 20_000).result()
            assert caught.value.errno == errno.ENOSPC
            assert "deleting a session needs no room, and makes some" in str(caught.value)
            moved = await sup.reset("a", archive=archive)
            left = {name for name in os.listdir(disk) if not name.startswith("filler")}
            assert left == ({os.path.basename(moved)} if moved is not None else set())
            assert (moved is not None) == archive
            assert not file.exists()
            if not archive and (disk / "filler").exists():  # a disk that really gives the room back
                await sup.post("session:a", "again").result()
                assert file.exists()


@pytest.mark.failure("Z10")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["open", "write"])
async def test_a_lock_file_for_which_there_is_no_room_refuses_all_but_deleting(tmp_path, code, call, monkeypatch):
    path, registry, run = str(tmp_path / "session.jsonl"), LockRegistry(), Fence(lane="main", run_id=1)
    await registry.append(path, {"n": 1})
    original = getattr(_os, call)

    def no_room(first, *args):
        name = first if call == "open" else os.readlink(f"/proc/self/fd/{first}")
        if name.endswith(".lock"):
            raise OSError(code, os.strerror(code))
        return original(first, *args)

    monkeypatch.setattr(_os, call, no_room)
    async with registry.new_lease(path, Right.TURN, None, fence=run):
        with pytest.raises(TranscriptError, match="deleting a session needs no room") as caught:
            await registry.append(path, {"n": 2})
        assert caught.value.errno == code
        assert await registry.store.set_aside(path, None, under=run)
    assert os.listdir(tmp_path) == []
    assert registry.statistics().sessions == 0


@pytest.mark.failure("Z10")
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
async def test_a_lock_file_that_is_refused_for_another_reason_refuses_deleting_too(tmp_path, code, monkeypatch):
    path, registry, run = str(tmp_path / "session.jsonl"), LockRegistry(), Fence(lane="main", run_id=1)
    await registry.append(path, {"n": 1})
    original = _os.open

    def refused(name, *args):
        if name.endswith(".lock"):
            raise OSError(code, os.strerror(code))
        return original(name, *args)

    async with registry.new_lease(path, Right.TURN, None, fence=run):
        monkeypatch.setattr(_os, "open", refused)
        with pytest.raises(TranscriptError) as caught:
            await registry.store.set_aside(path, None, under=run)
        monkeypatch.setattr(_os, "open", original)
    assert caught.value.errno == code
    assert os.listdir(tmp_path) == ["session.jsonl"]


@pytest.mark.failure("Z10")
async def test_a_foreign_gateway_is_waited_for_on_a_full_disk_too(small_disk):  # noqa: F811
    disk, fill = small_disk
    path, registry, run = str(disk / "session.jsonl"), LockRegistry(), Fence(lane="main", run_id=1)
    await registry.append(path, {"n": 1})
    async with registry.new_lease(path, Right.TURN, None, fence=run):
        beside(path, ".lock", foreign())
        fill(0)
        with move_on_after(0.3) as scope:
            await registry.store.set_aside(path, None, under=run)
        assert scope.cancelled_caught
        assert os.listdir(disk).count("session.jsonl") == 1
        os.unlink(path + ".lock")
        with fail_after(60):
            assert await registry.store.set_aside(path, None, under=run)
    assert "session.jsonl" not in os.listdir(disk)


@pytest.mark.failure("Z10")
async def test_a_compaction_says_that_it_needs_room_beside_the_old_file(tmp_path, monkeypatch):
    path, registry, write = tmp_path / "session.jsonl", LockRegistry(), _os.write
    await registry.append(path, {"text": "x" * 30_000})
    before = path.read_bytes()

    def full(fd, data):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".new"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(_os, "write", full)
    async with registry.lease(path) as lease:
        read = await lease.read()
        with pytest.raises(TranscriptError) as caught:
            await lease.replace([{"summary": 1}], through=read.position)
    assert str(caught.value) == (
        f"cannot write {path}.new: No space left on device; it needs room beside the old file, until it takes its place"
    )
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["session.jsonl"])


@pytest.mark.failure("Z10")
def test_the_doctor_removes_on_a_full_disk_what_is_dead(small_disk):  # noqa: F811
    disk, fill = small_disk
    for name, end, data in [
        ("dead", ".lock", foreign(DEAD)),
        ("noted", ".turn", ours(pid=DEAD)),
        ("left", ".new", b"x" * 9_000),
        ("torn", "", RECORD + b"torn"),
    ]:
        beside(str(disk / f"{name}.jsonl"), "", RECORD)
        beside(str(disk / f"{name}.jsonl"), end, data)
    beside(str(disk / "orphan.jsonl"), ".lock", foreign(DEAD))
    fill(0)
    told = {name: mend(str(disk / f"{name}.jsonl")) for name in ("torn", "dead", "noted", "orphan", "left")}
    assert [(len(one.done), len(one.left)) for one in told.values()] == [(0, 1), (1, 0), (1, 0), (1, 0), (1, 0)]
    assert "No space left on device" in told["torn"].left[0]
    left = sorted(name for name in os.listdir(disk) if name not in ("filler", "torn.jsonl.torn"))
    assert left == [f"{name}.jsonl" for name in ("dead", "left", "noted", "torn")]
    assert (disk / "torn.jsonl").read_bytes() == RECORD + b"torn"
    seen = inspect(str(disk / "left.jsonl"))
    assert seen is not None
    assert seen.findings == []
    if (disk / "filler").exists():  # a disk that really gives the room back
        assert [len(one) for one in (mend(str(disk / "torn.jsonl")).done,)] == [1]
        assert (disk / "torn.jsonl.torn").read_bytes() == b"torn\n"
