"""A pooler between a node and its database: one that lends connections by transaction is refused, by name.

What a real one does was tried by hand (docs/cluster.md says with which); here the processes that serve are made up.
"""

from __future__ import annotations

import anyio.to_thread
import pytest

from runtime import PostgresStore, Supervisor
from runtime.cli import main
from runtime.inbox.errors import InboxInvalid
from runtime.postgres import pooler

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio")]

BY_TRANSACTION = {"the last one that was used": [1, 1, 1], "one after the other": [1, 1, 2, 3]}


@pytest.fixture
def served_by(monkeypatch):
    """Have connections be served by these processes, from the first question on."""

    def serve(processes):
        left = iter(processes)

        async def backend_of(_connection):
            return next(left)

        monkeypatch.setattr(pooler, "backend_of", backend_of)

    return serve


@pytest.mark.parametrize("processes", BY_TRANSACTION.values(), ids=BY_TRANSACTION.keys())
async def test_one_that_lends_connections_by_transaction_is_refused(pg, schema, served_by, processes, capfd):
    served_by(processes)
    with pytest.raises(InboxInvalid, match="shares connections by transaction; allowed: one that gives each client"):
        await Supervisor(PostgresStore(pg.tcp_dsn, schema=schema, create=True)).start()
    served_by(processes)
    assert await anyio.to_thread.run_sync(main, ["db", "check", "--store", pg.dsn, "--schema", schema]) == 1
    assert "wrong  pooler       there is one that shares" in capfd.readouterr().out


async def test_one_that_lends_them_for_as_long_as_a_client_stays_is_used(pg, schema, served_by, capfd):
    served_by([1, 1, 2, 1])
    async with Supervisor(PostgresStore(pg.tcp_dsn, schema=schema, create=True)):
        served_by([1, 1, 2, 1])
        assert await anyio.to_thread.run_sync(main, ["db", "check", "--store", pg.dsn, "--schema", schema]) == 0
    assert "note   pooler       there is one, which gives each client" in capfd.readouterr().out
