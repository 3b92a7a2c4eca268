"""The functions of the database by themselves: called on connections of a test, without what the product has above.

A schema may be made from changed SQL: with a guard taken out, or with a place at which a function stops (`PAUSE`) until
`Database.go_on`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import psycopg

from runtime.postgres.functions import FUNCTIONS, TABLES
from runtime.postgres.schema import filled
from tests.poll import eventually_sync

PAUSE = "perform pg_advisory_xact_lock_shared(1);"
OPEN = ["accepted", "started"]
_WITHIN_S = 20.0
_numbers = count(1_000_000)
"""Above those that tests name themselves."""

SOUND = """
select 'pending of ' || t.place || ' is ' || t.pending from {s}.session t where t.pending <> (
  select count(*) from {s}.message m where m.place = t.place and m.state in ('accepted', 'started'))
union all select 'message ' || m.id || ' has no place' from {s}.message m
  where m.state in ('accepted', 'started') and not exists (select from {s}.session t where t.place = m.place)
union all select t.place || ' is owned by a node that is gone' from {s}.session t
  where t.owner is not null and not exists (select from {s}.node n where abs(n.id) = t.owner)
union all select 'message ' || m.id || ' is started in a session of nobody' from {s}.message m
  join {s}.session t on t.place = m.place where m.state = 'started' and t.owner is null
union all select 'message ' || m.id || ' is started on another node than its session''s' from {s}.message m
  join {s}.session t on t.place = m.place where m.state = 'started' and t.owner <> m.node
union all select 'message ' || m.id || ' waits for a question that is closed' from {s}.message m
  join {s}.ask a on a.id = m.asked where m.state = 'waiting' and a.state <> 'open'
union all select 'gap in the numbers of ' || e.place from {s}.entry e join {s}.session t using (place, incarnation)
  group by e.place, t.next_seq having count(*) <> t.next_seq or max(e.seq) <> t.next_seq - 1
"""
"""What is wrong in a schema, by itself; a row for each."""


class Caller:
    """One connection. `call` waits for the answer, `begin` does not."""

    def __init__(self, database: Database, connection: psycopg.Connection) -> None:
        self._database, self.connection = database, connection
        self._thread = ThreadPoolExecutor(1)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(self._database.filled(statement), values)
        return cursor.fetchall() if cursor.description is not None else []

    def call(self, function: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a function of the schema answers."""
        places = ", ".join(f"%s{_cast(value)}" for value in values)
        return self.sql(f"select * from {{s}}.{function}({places})", *values)

    def begin(self, function: str, *values: Any) -> Future[list[tuple[Any, ...]]]:
        """Call it in a thread; returns when it was answered, or waits for another connection."""
        future = self._thread.submit(self.call, function, *values)
        eventually_sync(lambda: future.done() or self._database.waits(self), within=_WITHIN_S)
        return future

    @contextmanager
    def open(self) -> Iterator[None]:
        """What is called inside is committed at the end."""
        with self.connection.transaction():
            yield

    def close(self) -> None:
        self._thread.shutdown()
        self.connection.close()


def _cast(value: Any) -> str:
    if isinstance(value, list):
        kind = type(value[0]) if value else str
        return {int: "::bigint[]", float: "::float8[]"}.get(kind, "::text[]")
    return ""


class Database:
    """A schema of the product's, with changes.

    Args:
        changes: what stands in the SQL of a function, and what stands there instead, wherever it occurs there.
    """

    def __init__(self, dsn: str, schema: str, changes: Mapping[tuple[str, str], str] | None = None) -> None:
        self.dsn, self.schema = dsn, schema
        self._closing = ExitStack()
        self._filled: dict[str, bytes] = {}
        self._watcher = self.connect()
        sql = FUNCTIONS
        for (function, old), new in (changes or {}).items():
            text = next(one for one in sql.split("\ncreate function ") if one.startswith(f"{{s}}.{function}("))
            if old not in text:
                self.close()
                raise LookupError(f"{function} does not have: {old}")
            sql = sql.replace(text, text.replace(old, new))
        self._watcher.sql("drop schema if exists {s} cascade")
        self._watcher.sql("create schema {s}")
        self._watcher.sql(TABLES)
        self._watcher.sql(sql)

    def filled(self, statement: str) -> bytes:
        """A statement with the schema in it."""
        if (found := self._filled.get(statement)) is None:
            found = self._filled[statement] = filled(statement, self.schema).as_bytes()
        return found

    def connect(self) -> Caller:
        connection = psycopg.connect(self.dsn, autocommit=True)
        caller = Caller(self, connection)
        self._closing.callback(caller.close)
        return caller

    def waits(self, caller: Caller) -> bool:
        """Whether a connection waits for a lock."""
        text = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        return bool(self._watcher.sql(text, caller.connection.info.backend_pid))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Until the end, functions stop at their `PAUSE`."""
        self._watcher.sql("select pg_advisory_lock(1)")
        try:
            yield
        finally:
            self._watcher.sql("select pg_advisory_unlock(1)")

    def node(self, *, silent: bool = False) -> int:
        """A node that has joined; `silent`, it is to be reaped."""
        node = next(_numbers)
        text = "insert into {s}.node (id, name, host, pid, ttl, grace, beat_at) values (%s, 'n', 'h', 1, 1, 0, "
        ago = "'1 hour'" if silent else "'-1 hour'"
        self._watcher.sql(f"{text} clock_timestamp() - interval {ago})", node)
        return node

    def silence(self, node: int) -> None:
        """A node has not beaten for long."""
        self._watcher.sql("update {s}.node set beat_at = '2000-1-1' where id = %s", node)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._watcher.sql(statement, *values)

    def wrong(self) -> list[str]:
        """What is wrong."""
        return [text for (text,) in self._watcher.sql(SOUND)]

    def close(self) -> None:
        self._closing.close()


def accepts(
    session: str | None, node: int, *, claims: bool = True, token: int = 0, dedupe: str | None = None, repeat: int = 0
) -> tuple[Any, ...]:
    """The function that accepts a message, and its arguments."""
    token = token or next(_numbers)
    place = f"m:{token}" if session is None else f"s:{session}"
    return (
        *("accept", place, 1, "main", session, None, None, None, b"1", b"null", dedupe, b"", repeat, False, None),
        *(None, token, node, claims),
    )


def ends(node: int, message: int, state: str = "done") -> tuple[Any, ...]:
    """The function that ends a message, and its arguments."""
    return ("ended", node, [message], state, "", None, OPEN)
