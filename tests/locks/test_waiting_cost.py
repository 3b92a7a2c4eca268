"""What waiting for other processes costs: a bounded number of looks, by one task, however many sessions are waited for.

Counted, not timed: the share of a processor and the event loop's lag are measured by `python -m benchmarks locks`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack

import anyio
import pytest

from locks import LockRegistry, _os
from locks._loop import current_task
from locks.rights.queue import RightQueue


def counted_looks(monkeypatch, virtual, each_takes: float) -> Counter[object]:
    """The looks of each task from now on."""
    looks: Counter[object] = Counter()
    poll = RightQueue.poll

    def counted(queue: RightQueue):
        looks[current_task()] += 1
        virtual.advance(each_takes)
        return poll(queue)

    monkeypatch.setattr(RightQueue, "poll", counted)
    return looks


@pytest.mark.failure("D2")
@pytest.mark.parametrize("files", [1, 8, 64])
async def test_waiters_for_many_files_look_at_a_bounded_rate_and_one_task_looks_for_all(
    files, tmp_path, virtual, monkeypatch
):
    here, elsewhere = LockRegistry(), LockRegistry()
    paths = [tmp_path / f"{number}.jsonl" for number in range(files)]
    calls: Counter[str] = Counter()
    conflict = _os.ofd_conflict

    def counted_conflict(*args):
        calls["conflict"] += 1
        return conflict(*args)

    async def wait(path):
        async with here.lease(path):
            pass

    async with AsyncExitStack() as held:
        for path in paths:
            await held.enter_async_context(elsewhere.lease(path))
        async with anyio.create_task_group() as group:
            for path in paths:
                group.start_soon(wait, path)
            await anyio.sleep(2.0)  # by now nobody looks more often than every 5 ms
            assert here.statistics().competing == files
            looks = counted_looks(monkeypatch, virtual, 0.0)
            monkeypatch.setattr(_os, "ofd_conflict", counted_conflict)
            await anyio.sleep(2.0)
            total = sum(looks.values())
            assert total >= 2.0 / 0.02 * files / 4  # they do look
            assert total <= min(2.0 / 0.005 * files, 2.0 / 0.0002) * 1.05 + files
            assert calls["conflict"] <= total  # one question to the kernel for each
            assert len(looks) == 1  # the leader's task
            group.cancel_scope.cancel()
    assert here.statistics().waiting == 0


async def test_looks_have_a_bounded_share_of_a_slow_processor(tmp_path, virtual, monkeypatch):
    here, elsewhere = LockRegistry(), LockRegistry()
    paths = [tmp_path / f"{number}.jsonl" for number in range(64)]
    looks = counted_looks(monkeypatch, virtual, 0.00002)

    async def wait(path):
        async with here.lease(path):
            pass

    async with AsyncExitStack() as held:
        for path in paths:
            await held.enter_async_context(elsewhere.lease(path))
        async with anyio.create_task_group() as group:
            for path in paths:
                group.start_soon(wait, path)
            await anyio.sleep(2.0)
            looks.clear()
            await anyio.sleep(2.0)
            group.cancel_scope.cancel()
    assert looks.total() * 0.00002 / 2.0 == pytest.approx(0.04, rel=0.2)
