"""What the database does for a fleet: claims among many sessions, beats, waiting sessions, and statistics of all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import psycopg

from runtime import PostgresStore
from runtime.postgres import by_hand
from runtime.postgres.connection import SETTINGS
from runtime.postgres.functions import FUNCTIONS, TABLES
from runtime.postgres.life import BEAT, REAP
from runtime.postgres.schema import filled
from runtime.postgres.shares import AFTER_S, Shares
from runtime.trial.postgres_server import PostgresServer

from .measure import Figure

MANY = 100_000
CLAIMED, ROUNDS = 10, 15
NODES, TTL = 16, 10.0
BEATS = 400
WAITING = 2_000


def figures(pg: PostgresServer) -> list[Figure]:
    """All figures of this module."""
    with _tables(pg, "rows") as connection:
        alone = _claim(connection)
        _sessions(connection, MANY, owner=6)
        owned = _claim(connection)
        with connection.transaction(force_rollback=True):
            connection.execute("update rows.session set owner = null where owner = 6")
            free = _claim(connection)
        fleet = anyio.run(_fleet, pg)
    with _tables(pg, "beats") as connection:
        beats = _beats(connection, pg)
        waiting = _waiting(connection, pg)
    return [
        Figure(
            f"claim {CLAIMED} sessions, {MANY:,} of another node pending / none",
            owned / alone,
            "×",
            3,
            detail=f"{owned * 1e3:.2f} against {alone * 1e3:.2f} ms",
        ),
        Figure(f"claim {CLAIMED} sessions, {MANY:,} free ones pending / none", free / alone, "×", 3),
        Figure(f"statistics of a fleet with {MANY:,} sessions", fleet * 1e3, "ms", 50),
        Figure(
            f"beats of {NODES} nodes, TTL {TTL:.0f} s: of a core of the server",
            beats * NODES * 3 / TTL * 100,
            "%",
            1,
            detail=f"{beats * 1e6:.0f} µs of CPU for a beat and a look for silent nodes",
        ),
        Figure("a session that is waited for: memory of the server", waiting, "B", 2_000),
    ]


@contextmanager
def _tables(pg: PostgresServer, schema: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(SETTINGS)
        connection.execute(filled("create schema {s}", schema))
        connection.execute(filled(TABLES, schema))
        connection.execute(filled(FUNCTIONS, schema))
        for node in range(NODES):
            values = (node, f"node-{node}", TTL, TTL / 4)
            text = "insert into {s}.node (id, name, host, pid, ttl, grace) values (%s, %s, 'here', 1, %s, %s)"
            connection.execute(filled(text, schema), values)
        connection.execute("select set_config('search_path', %s, false)", (schema,))
        yield connection


def _sessions(connection: psycopg.Connection, number: int, owner: int | None, key: str = "s:many-") -> None:
    """Sessions with one message each."""
    connection.execute(
        "insert into session (place, pending, since, owner) select %s || i, 1, i, %s::bigint "
        "from generate_series(1, %s) i",
        (key, owner, number),
    )
    connection.execute(
        "insert into message (place, lane, session, body, route, digest, repeat, first, token, taken_by) "
        "select %s || i, 'main', %s || i, '', '', '', 0, false, (random() * 1e15)::bigint, 7 "
        "from generate_series(1, %s) i",
        (key, key, number),
    )


def _claim(connection: psycopg.Connection) -> float:
    """Seconds for a claim that gets what it may."""
    took = list[float]()
    _sessions(connection, CLAIMED, None, f"s:free-{time.monotonic_ns()}-")
    for _ in range(ROUNDS):
        with connection.transaction(force_rollback=True):
            began = time.perf_counter()
            found = connection.execute(
                filled("select {s}.claimed_fairly(%s, %s::bigint[], %s::float8[])", "rows"),
                (7, Shares().of(CLAIMED), AFTER_S),
            ).fetchall()
            took.append(time.perf_counter() - began)
        assert len(found) == CLAIMED
    return median(took)


async def _fleet(pg: PostgresServer) -> float:
    """Seconds for what `lanes db nodes` shows; the best of several, for the bound is no ratio."""
    store, took = PostgresStore(pg.dsn, schema="rows"), list[float]()
    async with by_hand.opened(store) as connection:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await by_hand.fleet(connection, store.schema)
            took.append(time.perf_counter() - began)
    return min(took)


def _beats(connection: psycopg.Connection, pg: PostgresServer) -> float:
    """Seconds of the server's CPU for a beat and a look for silent nodes."""
    row: Any = connection.execute("select pg_backend_pid()").fetchone()

    def beat(times: int) -> None:
        for n in range(times):
            connection.execute(filled(BEAT, "beats"), (None, n % NODES))
            connection.execute(filled(REAP, "beats"), (n % NODES,))

    beat(10)
    before = _cpu_of(row[0])
    beat(BEATS)
    return (_cpu_of(row[0]) - before) / BEATS


def _waiting(connection: psycopg.Connection, pg: PostgresServer) -> float:
    """Bytes of the server's memory for each session that another node waits for."""
    _sessions(connection, WAITING, 6)
    wait = filled("select {s}.wanted(7, %s || i) from generate_series(%s::int, %s::int) i", "beats")
    connection.execute(wait, ("s:many-", 1, 10))
    before = _memory_of(pg)
    connection.execute(wait, ("s:many-", 11, WAITING))
    return (_memory_of(pg) - before) / (WAITING - 10)


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_pids(pg: PostgresServer) -> list[int]:
    """The processes of a server."""
    children = Path(f"/proc/{pg.pid}/task/{pg.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def cpu_of_server(pg: PostgresServer) -> float:
    """Seconds of CPU of the processes of a server that run now."""
    return sum(_cpu_of(pid) for pid in server_pids(pg))


def _memory_of(pg: PostgresServer) -> float:
    """Bytes that the processes of a server have, what they share counted once."""
    total = 0
    for pid in server_pids(pg):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024
