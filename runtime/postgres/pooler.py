"""Whether a pooler stands between this process and the database, and whether it is one that a node can use.

A node needs connections of its own: it prepares statements, sets what its plans depend on, listens, and finds what a
lost connection has left by its process. A pooler that lends connections by transaction has all of that lost, or met by
others; most of the time it seems to work.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg

from ..inbox.errors import InboxInvalid
from .connection import connect
from .settings import PostgresStore


async def backend_of(connection: psycopg.AsyncConnection) -> int:
    """The process of the server that serves a connection now."""
    row = await (await connection.execute("select pg_backend_pid()", prepare=False)).fetchone()
    assert row is not None
    found: int = row[0]
    return found


async def is_pooled(connection: psycopg.AsyncConnection) -> bool:
    """Whether something stands between: the process of the server that a pooler names is none of the server's."""
    return await backend_of(connection) != connection.info.backend_pid


async def is_shared(connection: psycopg.AsyncConnection, store: PostgresStore) -> bool:
    """Whether what stands between lends connections by transaction.

    While another client is within a transaction, it has the connection that this one was just served by, or this one
    is served by another than before.
    """
    before = await backend_of(connection)
    other = await connect(store, "lanes looks for a pooler")
    try:
        await other.execute("begin")
        theirs = await backend_of(other)
        shared = theirs == before or await backend_of(connection) != before
        if shared:  # what `connect` has set is for nobody else
            await other.execute("rollback; reset all", prepare=False)
        return shared
    finally:
        with suppress(psycopg.Error, OSError):
            await other.close()


async def check_pooler(connection: psycopg.AsyncConnection, store: PostgresStore) -> None:
    """See that a node has its connections for itself.

    Raises:
        InboxInvalid: a pooler lends them by transaction.
        psycopg.Error, OSError: there is no answer.
    """
    if await is_pooled(connection) and await is_shared(connection, store):
        raise InboxInvalid(
            f"store: {store.name} is a pooler that shares connections by transaction; allowed: one that gives each "
            "client a connection for as long as it stays (pool_mode = session), or none",
            path=store.name,
        )
