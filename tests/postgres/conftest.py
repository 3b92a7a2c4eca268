"""What the tests of this folder are given: a server, a schema in it, and a network to cut.

Without a server or psycopg, its modules are skipped by name; with `LANES_CI` set, as `.ci/run` does, they fail.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.trial.cut_proxy import CutProxy
from runtime.trial.postgres_server import PostgresServer
from tests import on_store

_DROP_WITHIN = "10s"


class _Lacking(pytest.Module):
    """A module that cannot run here, and need not be importable."""

    def collect(self) -> list[pytest.Item]:
        on_store.fail_or_skip(allow_module_level=True)
        return []


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if on_store.missing() is None:
        return None
    module: pytest.Module = _Lacking.from_parent(parent, path=module_path)
    return module


@pytest.fixture
def pg(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A running server that no other process uses: a test may crash it. Async tests call it in a thread: it blocks."""
    yield postgres_server
    postgres_server.start()


@pytest.fixture
def dsn(pg: PostgresServer) -> str:
    """How to connect with `pg`, over its Unix socket."""
    return pg.dsn


@pytest.fixture
def schema(pg: PostgresServer) -> Iterator[str]:
    """The name of a schema that is not there yet. Afterwards it is dropped, whatever still holds locks in it."""
    import psycopg
    from psycopg import sql

    name = f"lanes_{secrets.token_hex(6)}"
    yield name
    pg.start()
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid, 10000) from (select distinct pid from pg_locks join pg_class"
            " on pg_class.oid = relation where relnamespace = to_regnamespace(%s) and pid <> pg_backend_pid()) as held",
            [name],
        )
        connection.execute("select set_config('lock_timeout', %s, false)", [_DROP_WITHIN])
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(name)))


@pytest.fixture
def proxy(pg: PostgresServer) -> Iterator[CutProxy]:
    """A network to `pg` that can be cut; connect with `pg.dsn_at(proxy.port)`."""
    with CutProxy(pg.port) as proxy:
        yield proxy
