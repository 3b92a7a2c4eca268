"""What a registry keeps of a lock inside the process, to take it again, is good for that very file and no other."""

from __future__ import annotations

import os
import weakref

import pytest

from locks import LeaseTimeout, LockRegistry
from locks.engines import inside
from locks.rights import open_files


@pytest.fixture
def alone(monkeypatch):
    """As in a process in which no registry was made before."""
    monkeypatch.setattr(inside, "several", False)
    monkeypatch.setattr(open_files, "_none_between", weakref.WeakSet())


async def test_a_lock_that_is_taken_again_keeps_out_a_registry_that_was_made_meanwhile(alone, tmp_path):
    first = LockRegistry(engine="none")
    async with first.lease(tmp_path / "s.jsonl"):
        pass
    second = LockRegistry(engine="none")
    async with first.lease(tmp_path / "s.jsonl"):
        with pytest.raises(LeaseTimeout):
            async with second.lease(tmp_path / "s.jsonl", wait_timeout=0):
                pass


async def test_a_lock_that_is_taken_again_is_that_of_the_file_that_has_the_name_now(alone, tmp_path):
    registry, path = LockRegistry(engine="none"), tmp_path / "s.jsonl"
    async with registry.lease(path):
        pass
    (tmp_path / "other").touch()
    os.replace(tmp_path / "other", path)
    async with registry.lease(path):
        entry = registry.arbiter.files.known(str(path))
        assert entry is not None and entry.file_id == (path.stat().st_dev, path.stat().st_ino)


async def test_a_registry_that_holds_nothing_has_no_sessions_but_takes_a_lock_again_with_the_same_entry(
    alone, tmp_path
):
    registry, path = LockRegistry(engine="none"), str(tmp_path / "s.jsonl")
    entries = []
    for _ in range(3):
        async with registry.lease(path):
            entries.append(registry.arbiter.files.known(path))
        assert registry.statistics().sessions == 0
    assert entries[0] is entries[1] is entries[2]
