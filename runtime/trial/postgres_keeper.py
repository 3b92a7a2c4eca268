"""The parent of one PostgreSQL server: a program that ends the server when the process that wanted it is gone.

`postgres_server.py` starts it by path, with `-I -S`: it needs the standard library only, and is there in 50 ms. The
first line of its standard input is the job, each further line a command (`start`, `stop`, `crash`); one line of JSON
answers each. When the input ends, its owner has closed it or is dead, however it died: the server is ended at once,
and its directory removed. It is in a session of its own, so a Ctrl-C at the terminal is for the owner alone.

PostgreSQL refuses to run as root. There it runs as `postgres` or `nobody`, from a directory of that user; a checkout
that this user cannot enter is no obstacle, because the binaries are copied then.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_WITHIN_S = 60.0
"""What initdb, a start with recovery, or a stop may take."""
_PORTS = (15_432, 32_000)
"""Below the ports that systems give to outgoing connections: none of those takes the port while the server is away."""
_LONGEST = 85
"""Characters of a directory in which a Unix socket still has a valid path."""
_ACCEPTS = ("ready", "standby")
_PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """Something that was asked for did not come about; the text is for the owner."""


def _user() -> dict[str, Any]:
    """How to start a program as a user whom PostgreSQL accepts: keywords for `subprocess`."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": ()}
    raise Failed("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to start it as")


class Keeper:
    """The server, its directory and its port. One thread only."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._as_user = _user()
        self._settings: dict[str, str] = job["settings"]
        self._server: subprocess.Popen[bytes] | None = None
        self.directory = self._usable_directory()
        self._data, self._log = self.directory / "data", self.directory / "log"
        try:
            self._binaries = self._usable_binaries(Path(job["binaries"]))
            self._initdb(job["password"], standby=job["standby"])
            self.port = self._first_start()
        except BaseException:
            self.close()
            raise

    # Commands

    def start(self) -> None:
        """Start the server, unless it runs; it accepts connections then."""
        if self._server is not None and self._server.poll() is None:
            return
        # Its output is a file: a pipe that nobody reads would stop it.
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 -- this program has one thread
                **self._as_user,
            )  # fmt: skip
        until = time.monotonic() + _WITHIN_S
        while self._status() not in _ACCEPTS:
            if self._server.poll() is not None:
                raise Failed(f"PostgreSQL ended with {self._server.returncode} while it started:\n{self._end_of_log()}")
            if time.monotonic() > until:
                self.crash()
                raise Failed(f"PostgreSQL did not start within {_WITHIN_S:g} s:\n{self._end_of_log()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in good order, with a checkpoint; connections are closed."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End all its processes at once, without a checkpoint: the next start recovers."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """End it, and remove all that is its own."""
        with contextlib.suppress(Failed):
            self.crash()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._server is None:
            return
        self._server.send_signal(number)
        try:
            self._server.wait(_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise Failed(f"PostgreSQL did not end within {_WITHIN_S:g} s:\n{self._end_of_log()}") from None
        self._server = None

    # How it comes to be

    def _usable_directory(self) -> Path:
        """A new directory that the user of the server can enter."""
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
            if len(parent) > _LONGEST - len("/lanes-pg-12345678"):
                continue
            directory = Path(tempfile.mkdtemp(prefix="lanes-pg-", dir=parent))
            if "user" in self._as_user:
                os.chown(directory, self._as_user["user"], self._as_user["group"])
            if self._can_run("/bin/sh", "-c", 'cd "$0"', directory):
                return directory
            directory.rmdir()
        raise Failed("there is no temporary directory with a short name that the user of PostgreSQL can enter")

    def _usable_binaries(self, binaries: Path) -> Path:
        """Where to start PostgreSQL from: a copy, if its user cannot reach the binaries."""
        if self._can_run(binaries / "initdb", "--version"):
            return binaries
        prefix = binaries.parent
        package = self.directory / prefix.parent.name
        shutil.copytree(prefix, package / prefix.name, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")  # what a wheel has beside its package
        if libraries.is_dir():
            shutil.copytree(libraries, package.with_name(libraries.name))
        for found in self.directory.rglob("*"):
            if not found.is_symlink():
                found.chmod(0o755)
        copied = package / prefix.name / binaries.name
        if not self._can_run(copied / "initdb", "--version"):
            raise Failed(f"the binaries in {binaries} do not run, nor does a copy of them")
        return copied

    def _can_run(self, *command: str | Path) -> bool:
        # Not with `cwd`: that is entered before the process has its user.
        try:
            done = subprocess.run(command, cwd="/", capture_output=True, check=False, **self._as_user)
        except PermissionError:
            return False
        return done.returncode == 0

    def _initdb(self, password: str, *, standby: bool) -> None:
        secret = self.directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if "user" in self._as_user:
            os.chown(secret, self._as_user["user"], self._as_user["group"])
        command: list[str | Path] = [
            self._binaries / "initdb", "--pgdata", self._data, "--username", "postgres", "--encoding", "UTF8",
            # The socket is in a directory of this user; the port is open to every user of this machine.
            "--locale", "C", "--auth-local", "trust", "--auth-host", "scram-sha-256", "--pwfile", secret,
            # What is new survives a crash of the server, if not one of the machine; small files come quickly.
            "--no-sync", "--wal-segsize", "1",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, check=False, timeout=_WITHIN_S, **self._as_user
        )
        if done.returncode:
            raise Failed(f"initdb ended with {done.returncode}:\n{done.stderr}")
        if standby:
            # Without a primary to follow it recovers for ever, and takes connections that only read.
            (self._data / "standby.signal").touch()

    def _first_start(self) -> int:
        """Start it on a free port, and return that. Another process may take the port first: then on another one."""
        for last in (False, False, True):
            port = _free_port()
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": str(port),
                "unix_socket_directories": str(self.directory),
                **self._settings,
            }
            if sys.platform == "linux":
                settings.setdefault(
                    "recovery_init_sync_method", "syncfs"
                )  # a tenth of the time of a start after a crash
            with (self._data / "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            try:
                self.start()
                return port
            except Failed as error:
                if last or "could not create any TCP/IP sockets" not in str(error):
                    raise
        raise AssertionError

    def _status(self) -> str:
        """What the server says of itself: the eighth line of the file with its process id."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        ours = self._server is not None and lines[:1] == [str(self._server.pid)]
        return lines[7].strip() if ours and len(lines) > 7 else ""

    def _end_of_log(self) -> str:
        return "".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-20:])


def _free_port() -> int:
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def _die_with_parent() -> None:
    """In the child, before it becomes the server: the kernel ends it when this program is killed."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _lines(owner: int) -> Iterator[bytes]:
    """The lines of standard input, until it ends or the owner is dead. Its forks may hold the other end open."""
    rest = b""
    while os.getppid() == owner:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        chunk = os.read(0, 65_536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _answered(do: Callable[[], dict[str, Any] | None]) -> None:
    try:
        answer = do() or {}
    except (Failed, OSError, subprocess.SubprocessError) as error:
        answer = {"error": str(error)}
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")


def _leave(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> None:
    """Do what the owner asks for, until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    lines = _lines(os.getppid())
    commands: dict[bytes, Callable[[], None]] = {}
    with contextlib.ExitStack() as stack:

        def begin() -> dict[str, Any]:
            keeper = Keeper(job)
            stack.callback(keeper.close)
            commands.update({b"start": keeper.start, b"stop": keeper.stop, b"crash": keeper.crash})
            return {"directory": str(keeper.directory), "port": keeper.port}

        if (first := next(lines, None)) is None:
            return
        job = json.loads(first)
        _answered(begin)
        for line in lines:
            _answered(commands[line])


if __name__ == "__main__":
    main()
