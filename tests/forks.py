"""Child processes that need no imports: forks of a process that has imported everything once.

A Python of its own for each child spends most of its time on imports: a quarter of a second of CPU for `lanes run`. A
fork has them. It is a process like any other, with its own standard streams, directory and environment, and it ends as
an interpreter does. What it is to be told apart by, such as its identity, the product makes anew in a fork.

    child = forks.python(["-m", "tests.children.holder", path], stdout=subprocess.PIPE)

A test about starting up, or about what is read when modules are imported, starts a Python of its own.

Its parent is the server, not this process. The server writes down how it ended, in a pipe of its own for each fork.
Rejected: to adopt it (`PR_SET_CHILD_SUBREAPER`), because that adopts the orphans of others as well.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests import ROOT
from tests.surroundings import UNWANTED

_MOST = 1 << 18
"""Bytes of an order."""
_ABOVE = 64
"""Descriptors that come in are moved above it, out of the way of those that they are to become."""


_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in UNWANTED}
"""Of the server: as it was before any test, the first of which may have set what none of the others has."""


class Order(NamedTuple):
    """What a fork is to be."""

    arguments: list[str]
    """As for `python`: `-m module`, or a script's path, of which `lanes` is the only one."""
    cwd: str
    environment: dict[str, str]
    descriptors: list[int]
    """The numbers that the descriptors of the order get, in this order."""
    new_session: bool


def can_be_forked(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a fork does what a Python of its own would, in that environment."""
    if sys.platform != "linux":
        return False
    given, known = os.environ if environment is None else environment, _server().environment
    read_at_start = {name for name in (*given, *known) if name.startswith("PYTHON") or name in UNWANTED}
    return all(given.get(name) == known.get(name) for name in read_at_start)


def python(arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """`python` with these arguments, as a child: a fork, where that does what a Python of its own would."""
    if can_be_forked(options.get("env")):
        return Forked(arguments, **options)
    return subprocess.Popen([sys.executable, *arguments], **options)


class Forked(subprocess.Popen[Any]):
    """A `Popen` of Python, without the executable in `args`, whose process is a fork."""

    def _execute_child(  # the seam of `Popen` in all versions of CPython supported here
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
        restore_signals, gid, gids, uid, umask, start_new_session, process_group,
    ) -> None:  # fmt: skip
        assert preexec_fn is None and not shell, "a fork runs Python, and nothing before it"
        streams = [number if given == -1 else given for number, given in enumerate((p2cread, c2pwrite, errwrite))]
        order = Order(
            arguments=list(map(os.fspath, args)),
            cwd=os.fspath(cwd or os.getcwd()),
            environment=dict(os.environ if env is None else env),
            descriptors=[0, 1, 2, *pass_fds],
            new_session=start_new_session,
        )
        self._ended, ends = os.pipe()
        try:
            self.pid = _server().fork(order, [*streams, *pass_fds, ends])
        except BaseException:
            os.close(self._ended)
            raise
        finally:
            os.close(ends)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]  # Popen's own

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As `os.waitpid`. Called by `Popen`, with its mutex held, until this has given the status once."""
        if wait_flags & os.WNOHANG and not select.select([self._ended], [], [], 0)[0]:
            return 0, 0
        status = os.read(self._ended, 16)
        os.close(self._ended)
        return self.pid, int(status or 0)  # nothing, if the server was killed

    def _internal_poll(self, _deadstate: int | None = None, **_: object) -> int | None:
        # As `Popen` does, which does not call `_try_wait` here.
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]  # Popen's own
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]  # Popen's own
        return self.returncode


class _Server:
    """The process that forks, from outside."""

    def __init__(self) -> None:
        self.environment = _ENVIRONMENT
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.descriptor = self._socket.fileno()
        self._mutex = threading.Lock()

    def fork(self, order: Order, descriptors: list[int]) -> int:
        """Returns the id of the fork. The last descriptor is that of the pipe that is told how it ended."""
        with self._mutex:
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
            answer = self._socket.recv(_MOST)
        if not answer:
            raise OSError(f"the server of forks has ended: {self.process.wait()}")
        return int(answer)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self.process.wait()


_running: _Server | None = None
_starting = threading.Lock()


def _server() -> _Server:
    global _running  # noqa: PLW0603 -- one for all tests of this process
    with _starting:
        if _running is None:
            _running = _Server()
            atexit.register(_running.close)
        return _running


def descriptor_of_server() -> int | None:
    """The one that stays open for as long as this process lives."""
    return None if _running is None else _running.descriptor


def id_of_server() -> int | None:
    """The child that stays for as long as this process lives."""
    return None if _running is None else _running.process.pid


# In the server, and in its forks.


def _serve(orders: socket.socket) -> Order:
    """Fork for each order. Returns in each fork, with its order."""
    _import_everything()
    gc.collect()
    gc.freeze()  # else each fork copies the pages of every object that it collects
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    told: dict[int, int] = {}
    """The pipe that is told how a fork ended, by its id."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([orders.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 16)
            _tell(told)
        if orders.fileno() not in ready:
            continue
        ordered, descriptors, _, _ = socket.recv_fds(orders, _MOST, 16)
        if not ordered:
            sys.exit()
        if Order(*json.loads(ordered)).arguments[1:2] == ["examples.gateway"]:
            _import_what_a_gateway_needs()  # with the first of them, and not for those who start none
        child = os.fork()
        if not child:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (woken, wakes, orders.detach(), descriptors.pop(), *told.values()):
                os.close(one)
            order = Order(*json.loads(ordered))
            _become(order, descriptors)
            return order
        told[child] = descriptors.pop()
        for one in descriptors:
            os.close(one)
        orders.send(b"%d" % child)


def _tell(told: dict[int, int]) -> None:
    """Pass on how forks have ended."""
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        pipe = told.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # its process may have ended without asking
            os.write(pipe, b"%d" % status)
        os.close(pipe)


def _import_everything() -> None:
    # ruff: noqa: F401 -- what is imported here is there in each fork; outside it, nobody needs it
    import anyio._backends._asyncio
    import anyio._backends._trio
    import psutil
    import structlog

    import runtime.cli.control
    import runtime.cli.doctor
    import runtime.cli.inbox
    import runtime.cli.status
    import runtime.trial.options
    import runtime.trial.start


def _import_what_a_gateway_needs() -> None:
    import httpx
    import prometheus_client
    import starlette.applications
    import starlette.routing
    import starlette.websockets
    import uvicorn.lifespan.on
    import uvicorn.protocols.http.auto
    import uvicorn.protocols.websockets.auto

    import examples.agent
    import examples.wire


def _become(order: Order, descriptors: list[int]) -> None:
    """Have this fork's surroundings be those of a new program."""
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for one, number in zip(moved, order.descriptors, strict=True):
        os.dup2(one, number)
        os.close(one)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order.new_session:
        os.setsid()
    os.chdir(order.cwd)
    os.environ.clear()
    os.environ.update(order.environment)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        # As an interpreter opens them: what they are, a pipe or a file, decides how they buffer.
        stream = open(  # noqa: SIM115 -- open until this process ends
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,
            encoding=getattr(sys, name).encoding,
            errors=getattr(sys, name).errors,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(order: Order) -> None:
    match order.arguments:
        case ["-m", module, *arguments]:
            sys.argv[:] = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case arguments:
            from runtime.cli import main

            sys.argv[:] = arguments
            sys.exit(main())


if __name__ == "__main__":
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
