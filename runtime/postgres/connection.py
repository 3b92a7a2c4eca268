"""How this process connects to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..inbox.errors import InboxInvalid
from .settings import PostgresStore, parts_of

CONNECT_WITHIN_S = 5.0
SETTINGS = "set lock_timeout = '5s'; set enable_seqscan = off; set jit = off"
"""Every statement has its index; a plan that was made while a table was small would go on reading all of it."""


class ClosedWhenCancelled(psycopg.AsyncConnection):
    """A connection that is closed when a call on it is cancelled.

    The library asks the server to cancel the statement, over another connection, and waits for that: where the network
    is cut, for seconds.
    """

    async def cancel_safe(self, *, timeout: float = 0.0) -> None:
        self.pgconn.finish()


def check_url(store: PostgresStore) -> None:
    """See that the URL is one that libpq reads.

    Raises:
        InboxInvalid: it is none.
    """
    try:
        conninfo_to_dict(store.url)
    except psycopg.ProgrammingError as error:
        said = one_line(error)
        if parts_of(store.url).user or "password" in store.url:
            # It may quote a part of the password: the half behind a `%` that stands for nothing, say.
            said = "it has a part that is no percent-encoding" if "percent" in said else said.partition(': "')[0]
        raise InboxInvalid(f"store, url: {said}; allowed: as libpq reads it", path=store.name) from None


def one_line(error: BaseException) -> str:
    """What an error of the driver says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


async def connect(store: PostgresStore, name: str) -> psycopg.AsyncConnection:
    """A connection of a node, in autocommit mode.

    Args:
        name: what the server lists it as.

    Raises:
        InboxInvalid: the URL is none.
        psycopg.Error, OSError, TimeoutError: none can be had.
    """
    check_url(store)
    async with asyncio.timeout(CONNECT_WITHIN_S):
        connection = await ClosedWhenCancelled.connect(
            store.url,
            autocommit=True,
            application_name=name,
            connect_timeout=int(CONNECT_WITHIN_S) + 1,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10_000,
        )
        try:
            await connection.execute(SETTINGS, prepare=False)
        except BaseException:
            await connection.close()
            raise
    return connection


def raise_if_cancelled() -> None:
    """The library may raise an error of its own in the place of a cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """As `raise_if_cancelled`, for what the library is asked inside: inside an `asyncio.timeout`, not around one."""
    try:
        yield
    except (psycopg.Error, OSError):
        raise_if_cancelled()
        raise


async def closed(connection: psycopg.AsyncConnection | None, *, unless: bool = False) -> psycopg.AsyncConnection | None:
    """Close a connection; returns what can still be used."""
    if unless and connection is not None and not connection.closed:
        return connection
    if connection is not None:
        with suppress(psycopg.Error, OSError):
            await connection.close()
    return None
