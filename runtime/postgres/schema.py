"""The schema in the database: making it, its version, and whether a server can be used at all."""

from __future__ import annotations

import psycopg
from psycopg import sql

from ..inbox.errors import InboxInvalid
from .errors import StoreDown
from .functions import FUNCTIONS, TABLES

FORM = 1
"""What this version reads and writes. A form that only adds is read by older programs too."""
OLDEST_SERVER = 140_000


def channel_of(schema: str) -> str:
    """The name under which nodes of a schema wake each other."""
    return f"lanes {schema}"


def filled(statement: str, schema: str) -> sql.Composed:
    """A statement of ours with the schema in the place of `{s}`."""
    return sql.SQL(statement).format(s=sql.Identifier(schema), channel=sql.SQL(channel_of(schema)))


async def make(connection: psycopg.AsyncConnection, schema: str) -> bool:
    """Make the schema with its tables and functions, unless it is there; returns whether it was made. One transaction.

    Raises:
        psycopg.Error: the role may not, say. Nothing was made.
    """
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(hashtext('lanes init'))")
        if await form_of(connection, schema) is not None:
            return False
        await connection.execute(filled("create schema if not exists {s}", schema))
        await connection.execute(filled(TABLES, schema))
        await connection.execute(filled(FUNCTIONS, schema))
        await connection.execute(filled("insert into {s}.form (version) values (%s)", schema), (FORM,))
    return True


async def form_of(connection: psycopg.AsyncConnection, schema: str) -> int | None:
    """The form of a schema; `None` when there is none of ours."""
    found = await connection.execute("select to_regclass(%s)", (f'"{schema.replace(chr(34), chr(34) * 2)}".form',))
    row = await found.fetchone()
    if row is None or row[0] is None:
        return None
    found = await connection.execute(filled("select max(version) from {s}.form", schema))
    row = await found.fetchone()
    return None if row is None else row[0]


async def check(connection: psycopg.AsyncConnection, where: str, schema: str) -> None:
    """See that a server and its schema can be used.

    Raises:
        StoreDown: not now: it is a standby, or does not keep what it acknowledges.
        InboxInvalid: not by this program.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise InboxInvalid(
            f"store: {where} is PostgreSQL {connection.info.server_version // 10_000}; allowed: 14 or newer", path=where
        )
    found = await connection.execute(
        "select pg_is_in_recovery(), current_setting('synchronous_commit'), current_setting('fsync'), "
        "current_setting('default_transaction_read_only')"
    )
    row = await found.fetchone()
    assert row is not None
    standby, commits, syncs, read_only = row
    if standby:
        raise StoreDown(f"store: {where} is a standby; allowed: the primary", path=where)
    if read_only == "on":
        raise StoreDown(f"store: {where} is read-only; allowed: a role and a database that may write", path=where)
    if commits == "off" or syncs == "off":
        name = "synchronous_commit" if commits == "off" else "fsync"
        raise StoreDown(
            f"store: {where} has {name}=off, and may lose what it has acknowledged; allowed: on, for this role",
            path=where,
        )
    check_form(await form_of(connection, schema), where, schema)


def check_form(form: int | None, where: str, schema: str) -> None:
    """See that a schema has the form that this version reads and writes.

    Raises:
        InboxInvalid: it has another, or is none of ours.
    """
    if form is None:
        raise InboxInvalid(
            f"store: {where} has no schema {schema!r} of ours; allowed: `lanes db init`, or create=True", path=where
        )
    if form != FORM:
        raise InboxInvalid(
            f"store: schema {schema!r} at {where} has form {form}; this version knows form {FORM}", path=where
        )
