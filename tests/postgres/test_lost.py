"""What is on its way when the node is lost."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from lanes import LaneSpec
from runtime import PostgresStore, StoreDown, Supervisor
from runtime.inbox import service
from runtime.postgres import ownership

pytestmark = pytest.mark.anyio


async def answer(ctx, messages):
    return None


@pytest.mark.failure("G22")
async def test_what_is_tried_again_when_the_node_is_lost_is_reported(pg, schema, monkeypatch):
    for module in (ownership, service):
        monkeypatch.setattr(module, "_LOOK_S", 60.0)  # so that what is tried again is the messages below
    store = PostgresStore(pg.dsn, schema=schema, ttl=0.5, create=True)
    refused: list[str] = []

    async def refuses(call):
        with pytest.raises(StoreDown):
            await call()
        refused.append("down")

    async with Supervisor(store, lanes=[LaneSpec("main", handler=answer)]) as sup:
        await (await sup.accept("main", 0)).wait(60)  # what begins with the supervisor is over
        await anyio.to_thread.run_sync(pg.crash)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as calls:
                calls.start_soon(refuses, lambda: sup.accept("main", 1))
                calls.start_soon(refuses, lambda: sup.find_message(1))
        await anyio.to_thread.run_sync(pg.start)
    assert refused == ["down", "down"]
