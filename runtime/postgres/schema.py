"""The schema in the database: making it, its version, and whether a server can be used at all.

Its version has two numbers. Programs of different *forms* do not run on one schema: whichever does not know the form
that is there refuses to start, and leaves it alone. A *step* only adds, or has a function do the same otherwise: what
programs of earlier steps call stays, so they go on while `lanes db init` makes it, and can be started still.

    step 1   dead nodes are reaped a part at a time; sessions are claimed by shares of their classes; an end or a
             repair whose answer was lost is answered as the first time
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import psycopg
from psycopg import sql

from ..inbox.errors import InboxInvalid
from .errors import StoreDown
from .functions import FUNCTIONS, TABLES

FORM, STEP = 1, 1
"""What this version reads and writes, and the step that it needs at least."""
OLDEST_SERVER = 140_000


def channel_of(schema: str) -> str:
    """The name under which nodes of a schema wake each other."""
    return f"lanes {schema}"


def filled(statement: str, schema: str) -> sql.Composed:
    """A statement of ours with the schema in the place of `{s}`."""
    return sql.SQL(statement).format(s=sql.Identifier(schema), channel=sql.SQL(channel_of(schema)))


class Form(NamedTuple):
    """The version of a schema."""

    form: int
    step: int


async def make(
    connection: psycopg.AsyncConnection, schema: str
) -> Literal["made", "brought up to date", "there already"]:
    """Make the schema with its tables and functions, or what an older program did not make. One transaction.

    Processes that use it go on meanwhile. A schema that is not ours, or has another form, is left alone.

    Raises:
        psycopg.Error: the role may not, say. Nothing was made.
    """
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(hashtext('lanes init'))")
        found = await form_of(connection, schema)
        if found is None:
            await connection.execute(filled("create schema if not exists {s}", schema))
            await connection.execute(filled(TABLES, schema))
            await connection.execute(filled(FUNCTIONS, schema))
            await connection.execute(
                filled("insert into {s}.form (version, step) values (%s, %s)", schema), Form(FORM, STEP)
            )
            return "made"
        if found.form != FORM or found.step >= STEP:
            return "there already"
        # In the place of the same function, so that a plan of before calls the new one.
        await connection.execute(filled(FUNCTIONS.replace("create function", "create or replace function"), schema))
        await connection.execute(
            filled("alter table {s}.form add column if not exists step int not null default 0", schema)
        )
        await connection.execute(filled("update {s}.form set step = %s", schema), (STEP,))
        return "brought up to date"


async def form_of(connection: psycopg.AsyncConnection, schema: str) -> Form | None:
    """The version of a schema; `None` when there is none of ours."""
    found = await connection.execute("select to_regclass(%s)", (f'"{schema.replace(chr(34), chr(34) * 2)}".form',))
    row = await found.fetchone()
    if row is None or row[0] is None:
        return None
    found = await connection.execute(filled("select to_jsonb(f) from {s}.form f limit 100", schema))
    rows: list[dict[str, Any]] = [row[0] for row in await found.fetchall()]
    forms = [Form(row["version"], row.get("step", 0)) for row in rows if type(row.get("version")) is int]
    return max(forms) if forms else None


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


def check_form(found: Form | None, where: str, schema: str) -> None:
    """See that a schema has the form that this version reads and writes, and its step.

    Raises:
        InboxInvalid: it has another, or is none of ours.
    """
    if found is None:
        raise InboxInvalid(
            f"store: {where} has no schema {schema!r} of ours; allowed: `lanes db init`, or create=True", path=where
        )
    if found.form != FORM:
        raise InboxInvalid(
            f"store: schema {schema!r} at {where} has form {found.form}; this version knows form {FORM}", path=where
        )
    if found.step < STEP:
        raise InboxInvalid(
            f"store: schema {schema!r} at {where} was made by an older version (form {FORM}, step {found.step}; this "
            f"one needs step {STEP}); allowed: `lanes db init`, or create=True, while programs of both versions run",
            path=where,
        )
