"""A program that a run starts: it leads a process group of its own, its output is bounded, and it ends with the call.

A group is signalled by the number of its leader, and the system gives that number to another process once the leader is
reaped and its group has gone. So everything depends on the order: see that the leader has ended *without* reaping it,
kill what is left of its group while the dead leader still bears the number, reap it, and never signal again. Therefore
the process is started by `subprocess`, in a thread because the start waits for a disk, and its end is read from a
pidfd, or asked for with `waitid` where there is none.

Rejected: `anyio.open_process`. The event loop below it reaps the leader when it likes (asyncio before Python 3.12 in a
thread), which leaves no moment to kill the rest of the group safely; and its pipes cannot say "this is all that is in
there now", which tells a pipe held open by a process that has left the group from one that will still be written.

A task of its own conducts the process. A cancellation that is not the event loop's own (a native `task.cancel()`, once
or many times) hits the task that calls; by the group that it waits in, it reaches the conductor as a cancellation that
a shield holds off, so the child is given its grace and is reaped however the call is cancelled.

A signal that a process ignores stays ignored in the programs that it starts, and a blocked one stays blocked. A program
must not inherit that from a gateway under `nohup` or in the background: a tool that ends its own helper with SIGINT
would wait for ever. `subprocess` resets SIGPIPE and SIGXFSZ only. The rest is reset between fork and exec, where Python
code may run safely only if it takes no lock; and only if there is something to reset, because it costs a whole fork.

What leaves the group (a daemon that calls `setsid`) is out of reach: it is neither killed nor waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, CapacityLimiter, create_task_group, get_cancelled_exc_class, to_thread

from locks import _os

from . import commands

if TYPE_CHECKING:
    import subprocess

KEPT_BY_ERRORS = 16_384
"""Bytes of each output that a `ProcessFailed` keeps: an error lives as long as the outcome of its run."""

_TERMINATION_SHARE = 0.8  # of the grace; in the rest the process is killed and reaped, and the body has its last words
_CHUNK = 65_536
_LARGEST_PIPE = 1_048_576  # bytes that a pipe may hold, unless root has raised it
_POLL = 0.005  # seconds between two looks where there is no pidfd
_RESETTABLE = (
    tuple(  # signals that a program could inherit as ignored; the rest `subprocess` resets, or no process can ignore
        number
        for number in sorted(signal.valid_signals())
        if number
        not in {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP", "SIGPIPE", "SIGXFZ", "SIGXFSZ")}
    )
)
_SHOWN = 200  # characters of a command, bytes of an output in a message


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a process ended, and what it wrote."""

    command: tuple[str, ...]
    returncode: int
    """Its exit code; negative: the number of the signal that ended it."""
    stdout: bytes
    """The last `output_limit` bytes, in one piece.

    Only the end is kept: there a program reports how it went, and a head glued to a tail would show a line that no
    program has written.
    """
    stderr: bytes
    """As `stdout`."""
    stdout_dropped: int
    """Bytes that came before those in `stdout`, and are gone."""
    stderr_dropped: int


class ProcessFailed(Exception):
    """A process could not be started, or did not end with exit code 0. It is gone, and so is its group.

    Not an `OSError`, so that no generic network retry takes a missing program for a failed request. Every field is an
    attribute; instances survive pickling.
    """

    command: tuple[str, ...]
    returncode: int | None
    """Its exit code; negative: the number of the signal that ended it; `None`: it was never started."""
    stdout: bytes
    """The last 16 KiB of what it wrote; with `check=False` the result has all of it."""
    stderr: bytes
    """As `stdout`."""
    errno: int | None
    """The operating system's number for why it could not be started."""

    def __init__(self, message: str, /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


async def run_process(
    command: Sequence[str | os.PathLike[str]],
    *,
    grace_left: Callable[[], float],
    killers: set[Callable[[], None]],
    input: bytes | None = None,  # noqa: A002 -- what `subprocess.run` calls it
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    output_limit: int = 1_000_000,
    check: bool = True,
) -> ProcessResult:
    """Run a program to its end. Afterwards neither it nor anything of its process group is left, however this ends.

    The program leads a session, and so a process group, of its own, and begins with no signal ignored or blocked. Both
    outputs are read all the time, so it never blocks on a full pipe. When it ends, the rest of its group is killed, and
    what its pipes hold by then is the last that is read: a process left behind in the background delays nothing.

    Args:
        command: the program and its arguments; no shell looks at them.
        grace_left: the seconds that the run may still take for its clean-up, asked for upon cancellation.
        killers: while the process lives, holds a function that kills its group; any number of calls, on the loop's
            thread. For a run that is abandoned, whose shields keep its cancellation away from here.
        input: what it reads from its standard input, which is empty otherwise. What it does not read is dropped.
        cwd: its working directory; that of this process otherwise.
        env: its whole environment, with the `PATH` in which the program is looked up; that of this process otherwise.
        output_limit: bytes kept of each output, 0 and more. The memory needed is bounded by it.
        check: whether to raise unless it ends with exit code 0.

    A checkpoint. Cancelled before the process was started, nothing is started. Cancelled later, the whole group gets
    SIGTERM at once, and SIGKILL as soon as its leader has ended, or four fifths of the grace have passed; the call ends
    when the leader is reaped. What another user runs (`sudo`) may not be signalled, and is waited for.

    Raises:
        ProcessFailed: it could not be started, or `check` is set and it did not end with exit code 0.
        ValueError: an argument is not allowed; names field, value and what is allowed. Nothing was started.
    """
    words = commands.words(command)
    directory = None if cwd is None else commands.text("cwd", cwd)
    variables = None if env is None else commands.environment(env)
    commands.check_options(input, output_limit, check)

    import subprocess  # noqa: PLC0415 -- slow to import, and few bodies start a process

    def start() -> subprocess.Popen[bytes]:
        source = subprocess.PIPE if input else subprocess.DEVNULL
        pipe = subprocess.PIPE
        with _os.standard_streams_taken():  # else what this program prints could become the input of the process
            return subprocess.Popen(
                words,
                0,
                stdin=source,
                stdout=pipe,
                stderr=pipe,
                cwd=directory,
                env=variables,
                start_new_session=True,
                preexec_fn=_signals_reset(),  # noqa: PLW1509 -- it takes no lock
            )

    child = _Child(start, input or b"", output_limit)
    killers.add(child.kill)
    try:
        async with create_task_group() as group:
            group.start_soon(child.conduct, group, grace_left, name=f"process {words[0]:.80}")
        if child.refusal is not None:
            raise _not_started(words, child.refusal)
        result = child.result(words)
    finally:
        killers.discard(child.kill)
        child.close()
    if check and result.returncode != 0:
        raise _failed(result)
    return result


class _Output:
    """The last `limit` bytes of a stream."""

    __slots__ = ("dropped", "kept", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = bytearray()
        self.dropped = 0

    def take(self, fd: int, most: int = _CHUNK) -> bool:
        """Read what the pipe holds now, up to `most` bytes. Returns `False` at its end."""
        try:
            chunk = os.read(fd, most)
        except BlockingIOError:
            return True
        self.kept += chunk
        excess = len(self.kept) - self.limit
        if excess > 0:
            del self.kept[:excess]  # moves the start, not the bytes
            self.dropped += excess
        return bool(chunk)


class _Child:
    """A process group, from before its start until its leader is reaped.

    Invariants: `_popen.returncode` is set exactly when the leader is reaped, which happens in `_reap` alone (or outside
    of this program, and is noticed there); until then its number is its own. All but `_start` runs on the loop.
    """

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], given: bytes, limit: int) -> None:
        self._starts = start
        self._given = given
        self._stdout = _Output(limit)
        self._stderr = _Output(limit)
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self._pumping = CancelScope(shield=True)
        self._doomed = False
        """Whether it was killed, perhaps while it was being started."""
        self.refusal: OSError | None = None
        """Why the system did not start it."""

    async def conduct(self, group: anyio.abc.TaskGroup, grace_left: Callable[[], float]) -> None:
        """Start it, and see it to its end; cancelled, make it end."""
        try:
            # A limit of its own: hung tool calls that fill the default pool must not keep a program from starting.
            await to_thread.run_sync(self._start, limiter=CapacityLimiter(1))
        except OSError as error:
            self.refusal = error
            return
        if self._doomed:
            self.kill()
        group.start_soon(self._pump)
        try:
            await self._ended()
        except get_cancelled_exc_class():
            self._signal(signal.SIGTERM)
            # Its outputs are still read, or it could not say its own last words.
            with anyio.move_on_after(grace_left() * _TERMINATION_SHARE, shield=True):
                await self._ended()
            raise
        finally:
            self.kill()  # the leader, if it is still there, and in any case what is left of its group
            with CancelScope(shield=True):
                await self._ended()
            self._reap()
            self._pumping.cancel()

    def kill(self) -> None:
        """SIGKILL to the whole group; if it does not exist yet, as soon as it does."""
        self._doomed = True
        self._signal(signal.SIGKILL)

    def result(self, command: tuple[str, ...]) -> ProcessResult:
        """What it has left, with what still is in its pipes."""
        popen = self._popen
        assert popen is not None and popen.stdout is not None and popen.stderr is not None
        assert popen.returncode is not None
        # Not up to the end of the pipes: a process that has left the group may hold them open, and write, for ever.
        self._stdout.take(popen.stdout.fileno(), _LARGEST_PIPE)
        self._stderr.take(popen.stderr.fileno(), _LARGEST_PIPE)
        return ProcessResult(
            command=command,
            returncode=popen.returncode,
            stdout=bytes(self._stdout.kept),
            stderr=bytes(self._stderr.kept),
            stdout_dropped=self._stdout.dropped,
            stderr_dropped=self._stderr.dropped,
        )

    def close(self) -> None:
        """Close all descriptors. No task waits for them any more."""
        if self._popen is not None:
            for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
                if pipe is not None:
                    pipe.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _start(self) -> None:
        if not hasattr(os, "waitid"):
            raise OSError(errno.ENOSYS, "this system has no waitid, without which its group cannot be ended safely")
        popen = self._starts()
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, or no descriptor left: it is asked instead
                self._pidfd = os.pidfd_open(popen.pid)
        self._popen = popen

    async def _ended(self) -> None:
        """Wait until the leader has ended. It is not reaped by that."""
        while not self._has_ended():
            if self._pidfd is not None:
                await anyio.wait_readable(self._pidfd)
            else:
                await anyio.sleep(_POLL)

    def _has_ended(self) -> bool:
        popen = self._popen
        assert popen is not None
        if popen.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            self._reap()  # the host has, if it ignores SIGCHLD, say; its number is no longer ours
            return True

    def _reap(self) -> None:
        assert self._popen is not None
        self._popen.wait()  # it has ended, so this does not block

    def _signal(self, number: signal.Signals) -> None:
        popen = self._popen
        if popen is None or popen.returncode is not None:
            return  # reaped: by now its number may be that of a stranger's group
        # No process of the group is left, or all of it belongs to another user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, number)

    async def _pump(self) -> None:
        """Keep its pipes moving until they end or `_pumping` is cancelled."""
        popen = self._popen
        assert popen is not None and popen.stdout is not None and popen.stderr is not None
        with self._pumping:
            async with create_task_group() as pipes:
                pipes.start_soon(_read, popen.stdout.fileno(), self._stdout)
                pipes.start_soon(_read, popen.stderr.fileno(), self._stderr)
                if popen.stdin is not None:
                    await _write(popen.stdin.fileno(), self._given)
                    popen.stdin.close()


def _signals_reset() -> Callable[[], None] | None:
    """What a new process must do so that no signal is ignored or blocked there; `None` if there is nothing to do.

    To be called on the thread that starts it, whose blocked signals it inherits.
    """
    ignored = [number for number in _RESETTABLE if signal.getsignal(number) is signal.SIG_IGN]
    if not ignored and not signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return None

    def reset() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return reset


async def _read(fd: int, output: _Output) -> None:
    await anyio.wait_readable(fd)
    while output.take(fd):
        await anyio.wait_readable(fd)


async def _write(fd: int, data: bytes) -> None:
    """Write until all is written, or the reader has closed the pipe."""
    left = memoryview(data)
    while left:
        await anyio.wait_writable(fd)
        try:
            left = left[os.write(fd, left[:_CHUNK]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            return


# Errors show commands and outputs as literals: they may hold line breaks and control characters, and a log must not.


def _shown(command: tuple[str, ...]) -> str:
    text = repr(list(command))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _not_started(command: tuple[str, ...], error: OSError) -> ProcessFailed:
    where = f": {error.filename!r}" if error.filename is not None else ""
    failed = ProcessFailed(
        f"process {_shown(command)} could not be started: {error.strerror or error}{where}",
        command=command,
        returncode=None,
        stdout=b"",
        stderr=b"",
        errno=error.errno,
    )
    failed.__cause__ = error
    return failed


def _failed(result: ProcessResult) -> ProcessFailed:
    code = result.returncode
    how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_name_of_signal(-code)}"
    end = result.stderr.strip()[-_SHOWN:].decode("utf-8", "replace")
    return ProcessFailed(
        f"process {_shown(result.command)} {how}; {f'its last words: {end!r}' if end else 'it wrote no error'}",
        command=result.command,
        returncode=code,
        stdout=result.stdout[-KEPT_BY_ERRORS:],
        stderr=result.stderr[-KEPT_BY_ERRORS:],
        errno=None,
    )


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal has no name
