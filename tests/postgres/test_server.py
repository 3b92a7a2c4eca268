"""The server of the tests: what it keeps, what it loses, and that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from runtime.trial.postgres_server import PostgresServer, PostgresServerError, find_binaries
from tests import ROOT
from tests.poll import eventually_sync

OWNER = """
import sys, time
from runtime.trial.postgres_server import PostgresServer
server = PostgresServer()
print(server.directory, server.keeper_pid, server.pid, flush=True)
time.sleep(600)
"""


def test_it_takes_connections_over_its_socket_and_over_tcp_with_a_password(pg):
    for dsn in (pg.dsn, pg.tcp_dsn):
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select current_user, current_setting('fsync')").fetchone() == ("postgres", "on")
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(host="127.0.0.1", port=pg.port, user="postgres")


@pytest.fixture
def left_open() -> Iterator[list[psycopg.Connection]]:
    """Connections that a test leaves open. They are closed after its schema is dropped, if set up before it."""
    connections: list[psycopg.Connection] = []
    yield connections
    for connection in connections:
        connection.close()


_schemas: list[str] = []


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_has_a_schema_of_its_own_which_is_dropped_whatever_is_open(left_open, pg, schema, turn):
    left_open.append(connection := psycopg.connect(pg.dsn))
    found = connection.execute("select nspname from pg_namespace where nspname like 'lanes_%'").fetchall()
    assert found == []
    assert schema not in _schemas
    _schemas.append(schema)
    connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    connection.execute(sql.SQL("create table {} (id int)").format(sql.Identifier(schema, "rows")))
    connection.commit()
    connection.execute(sql.SQL("lock table {}").format(sql.Identifier(schema, "rows")))


def test_a_crash_keeps_what_was_committed_and_nothing_else(pg, schema):
    port, table = pg.port, sql.Identifier(schema, "rows")
    with psycopg.connect(pg.dsn) as open_one:
        open_one.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        open_one.execute(sql.SQL("create table {} (id int)").format(table))
        open_one.execute(sql.SQL("insert into {} values (1)").format(table))
        open_one.commit()
        open_one.execute(sql.SQL("insert into {} values (2)").format(table))
        with pg.away(crash=True):
            assert pg.pid is None
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(pg.tcp_dsn)
            with pytest.raises(psycopg.OperationalError):
                open_one.commit()
    assert pg.port == port
    assert "database system was not properly shut down" in (pg.directory / "log").read_text()
    with psycopg.connect(pg.tcp_dsn) as connection:
        assert connection.execute(sql.SQL("select id from {}").format(table)).fetchall() == [(1,)]


def test_a_test_may_leave_the_server_stopped(pg):
    pg.stop()
    pg.stop()


def test_the_next_test_finds_it_running(pg):
    with psycopg.connect(pg.dsn) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_standby_takes_connections_and_refuses_to_write():
    with PostgresServer(standby=True) as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("select pg_is_in_recovery()").fetchone() == (True,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("create schema lanes")


def test_a_start_that_fails_says_what_the_server_said(pg):
    settings = pg.directory / "data" / "postgresql.conf"
    before = settings.read_text()
    pg.stop()
    settings.write_text(before + "no_such_setting = on\n")
    with pytest.raises(PostgresServerError, match='unrecognized configuration parameter "no_such_setting"'):
        pg.start()
    settings.write_text(before)
    pg.start()


def test_nothing_is_left_of_a_server_that_cannot_be_made(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)  # the server's user enters it
        monkeypatch.setenv("TMPDIR", directory)
        with pytest.raises(PostgresServerError, match="no binaries"):
            PostgresServer(Path(directory, "no binaries"))
        assert list(Path(directory).iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_neither_binaries_nor_a_directory_need_to_be_in_reach_of_the_user_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("PGBIN", raising=False)  # what a distribution has installed is in reach
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    wheel = find_binaries().parent.parent
    for name in (wheel.name, f"{wheel.name}.libs"):
        (hidden / name).symlink_to(wheel.with_name(name))
    with PostgresServer(hidden / wheel.name / "pginstall" / "bin") as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert tmp_path not in server.directory.parents
    assert list(tmp_path.iterdir()) == [hidden]


def test_nothing_is_left_when_its_owner_is_killed():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        directory, *pids = owner.stdout.readline().split()
    assert psycopg_can_reach(directory)
    owner.kill()
    owner.wait()
    eventually_sync(lambda: not any(map(alive, pids)) and not Path(directory).exists())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_server_ends_when_its_keeper_is_killed():
    server = PostgresServer()
    pid = server.pid
    os.kill(server.keeper_pid, signal.SIGKILL)
    with pytest.raises(PostgresServerError, match="is gone"):
        server.crash()
    server.close()
    eventually_sync(lambda: not alive(pid))
    shutil.rmtree(server.directory)


def alive(pid: int | str | None) -> bool:
    """Whether a process with that id runs; a dead one that is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def psycopg_can_reach(directory: str) -> bool:
    """Whether the server in that directory takes connections."""
    (socket,) = (found.name for found in Path(directory).glob(".s.PGSQL.*[0-9]"))
    with psycopg.connect(host=directory, port=socket.rpartition(".")[2], user="postgres"):
        return True
