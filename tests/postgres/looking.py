"""What tests look at: the rows of a database, and whether something comes true in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import psycopg

from runtime.trial.postgres_server import PostgresServer


def rows(pg: PostgresServer, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a statement returns, on a connection of its own; nothing for one that returns no rows."""
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until it is so. A checkpoint.

    Raises:
        TimeoutError: it is not, after so many seconds.
    """
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.02)
