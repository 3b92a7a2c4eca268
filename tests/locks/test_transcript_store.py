"""What a scheduler relies on of a `TranscriptStore`, whichever keeps the transcripts: today `FileStore`.

A store to come is added to `stores`, and has to pass this as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anyio import to_thread

from locks import Fence, LockRegistry, Right, RunEnded
from locks.transcript.store import TranscriptStore

HEADER = b'{"lanes.session":"a"}\n'


def files() -> tuple[LockRegistry, TranscriptStore]:
    """Files, and the registry whose rights they are written under."""
    registry = LockRegistry()
    return registry, registry.store


STORES: dict[str, Callable[[], tuple[LockRegistry, TranscriptStore]]] = {"files": files}


@pytest.fixture(params=STORES)
def made(request):
    return STORES[request.param]()


@pytest.fixture
def store(made):
    return made[1]


async def test_what_was_appended_is_read_in_order_from_any_task_and_thread(store, path):
    await store.append(path, b'{"n":1}\n{"n":2}\n', header=HEADER)
    await to_thread.run_sync(lambda: store.append_sync(path, b'{"n":3}\n', header=HEADER))
    assert await store.read(path, header=HEADER) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert await store.read(path, last=1, header=HEADER) == [{"n": 3}]


async def test_a_transcript_that_was_never_written_is_empty_and_stays_unmade(store, path):
    assert await store.read(path) == []
    assert (await store.read(path)).position is None
    assert [batch async for batch in store.stream(path)] == []


async def test_a_position_leads_to_what_was_appended_behind_it(store, path):
    first = await store.append(path, b'{"n":1}\n')
    assert (await store.read(path)).position == first
    await store.append(path, b'{"n":2}\n')
    assert [record async for batch in store.stream(path, after=first) for record in batch] == [{"n": 2}]


async def test_a_run_that_has_ended_writes_nothing(store, path):
    run = Fence(run_id=1)
    await store.append(path, b'{"n":1}\n', under=run)
    run.close()
    with pytest.raises(RunEnded):
        await store.append(path, b'{"n":2}\n', under=run)
    with pytest.raises(RunEnded):
        await to_thread.run_sync(lambda: store.append_sync(path, b'{"n":2}\n', under=run))
    assert await store.read(path) == [{"n": 1}]


@pytest.mark.parametrize("kept", [True, False])
async def test_the_run_that_conducts_sets_a_transcript_aside_and_the_next_append_begins_another(made, path, kept):
    registry, store = made
    run = Fence(run_id=1)
    await store.append(path, b'{"n":1}\n')
    async with registry.new_lease(path, Right.TURN, None, fence=run):
        assert await store.set_aside(path, path + ".old" if kept else None, under=run)
        assert not await store.set_aside(path, None, under=run)
    await store.append(path, b'{"n":2}\n')
    assert await store.read(path) == [{"n": 2}]
    assert await store.read(path + ".old") == ([{"n": 1}] if kept else [])
