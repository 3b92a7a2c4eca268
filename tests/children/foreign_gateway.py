"""A gateway that is not lanes: it knows nothing but lock files, and does with them what such gateways do.

`foreign_gateway PATH hold` takes the lock of a session and keeps it until it hears a line. It says `waiting` when it
had to look twice, `held`, and `left` or, if the file was not its own any more, `robbed`.
`foreign_gateway PATH compete HOLDS` says `ready`, begins when it hears a line, and holds HOLDS times for a moment. At
the end it says one line of JSON, `[[entered_ns, left_ns], ...]`, taken inside the holds.

It creates with O_EXCL, polls every 50 ms without a queue, reclaims what is stale in its eyes, and removes at the end
what still has the inode and the bytes that it wrote. Written without a line of lanes, which it is to be unlike. What it
leaves out: a real one also robs owners whose command line does not look like its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime

POLL_S = 0.05
LONGEST_S = 1800.0
UNREADABLE_S = 5.0


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def starttime(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


def is_stale(data: bytes, age_of_file_s: float) -> bool:
    try:
        told = json.loads(data)
        assert isinstance(told, dict)
    except (ValueError, AssertionError):
        return age_of_file_s > UNREADABLE_S
    pid = told.get("pid")
    if not isinstance(pid, int) or pid <= 0 or (started := starttime(pid)) is None:
        return True
    if told.get("starttime", started) != started:
        return True
    try:
        age_s = (datetime.now(UTC) - datetime.fromisoformat(told["createdAt"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return True
    return age_s > min(LONGEST_S, told.get("maxHoldMs", LONGEST_S * 1000) / 1000)


class Lock:
    """The lock file of a session."""

    def __init__(self, path: str) -> None:
        self._path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path) + ".lock")
        self._fd = -1
        self._mine = (0, 0, b"")

    def try_take(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            self._reclaim()
            return False
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"pid": os.getpid(), "createdAt": now, "maxHoldMs": 1_020_000, "starttime": starttime(os.getpid())}
        data = json.dumps(told, indent=2).encode() + b"\n"
        os.write(self._fd, data)
        made = os.fstat(self._fd)
        self._mine = (made.st_dev, made.st_ino, data)
        return True

    def release(self) -> bool:
        """Returns whether it was still ours."""
        os.close(self._fd)
        if self._look() != self._mine:
            return False
        os.unlink(self._path)
        return True

    def _look(self) -> tuple[int, int, bytes] | None:
        try:
            with open(self._path, "rb") as file:
                found = os.fstat(file.fileno())
                return found.st_dev, found.st_ino, file.read(4096)
        except FileNotFoundError:
            return None

    def _reclaim(self) -> None:
        seen = self._look()
        if seen is None:
            return
        try:
            age_s = time.time() - os.stat(self._path).st_mtime
            if is_stale(seen[2], age_s) and self._look() == seen:
                os.unlink(self._path)
        except FileNotFoundError:
            return


def take(lock: Lock) -> None:
    if lock.try_take():
        return
    say("waiting")
    while not lock.try_take():
        time.sleep(POLL_S)


def hold(path: str) -> None:
    lock = Lock(path)
    take(lock)
    say("held")
    sys.stdin.readline()
    say("left" if lock.release() else "robbed")


def compete(path: str, holds: int) -> None:
    intervals = []
    say("ready")
    sys.stdin.readline()
    for _ in range(holds):
        lock = Lock(path)
        while not lock.try_take():
            time.sleep(POLL_S)
        entered = time.monotonic_ns()
        time.sleep(0.002)
        left = time.monotonic_ns()
        assert lock.release()
        intervals.append((entered, left))
    say(json.dumps(intervals))


if __name__ == "__main__":
    if sys.argv[2] == "hold":
        hold(sys.argv[1])
    else:
        compete(sys.argv[1], int(sys.argv[3]))
