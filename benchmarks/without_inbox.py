"""What the inbox costs a supervisor that has none: the same program, on this version and on the last one without it.

The other version comes out of the repository's history; where that is not there, there are no figures. Both run the
same program in processes of their own, in turn. It posts and submits messages to a handler that returns at once, and
prints what one of them takes, until its sender has the outcome: the calls of Python functions, of ours and of others,
which are nearly the same on every machine, and the CPU time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median

from .measure import Figure

BEFORE = "a2255d8f4958a52bdfa667213848a11ca18e5a60"
"""The last version without an inbox."""
ROUNDS = 5
LIMIT_S = 120.0
_ROOT = Path(__file__).parents[1]
_PROGRAM = """
import json, sys, tempfile, time
import anyio
from lanes import LaneSpec
from runtime import Limits, Supervisor

MESSAGES, ROUNDS = 200, 15

async def handler(ctx, messages):
    pass

async def body(ctx):
    pass

async def main():
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        lanes = [LaneSpec("main", handler=handler)]
        async with Supervisor(directory, lanes=lanes, limits=Limits(lag_s=60)) as sup:
            for kind, send in (("post", lambda: sup.post("main", "x")), ("submit", lambda: sup.submit("main", body))):
                async def some():
                    for _ in range(MESSAGES):
                        await send().wait()
                await some()
                calls = 0
                def note(frame, event, arg):
                    nonlocal calls
                    calls += event == "call"
                sys.setprofile(note)
                await some()
                sys.setprofile(None)
                taken = []
                for _ in range(ROUNDS):
                    began = time.process_time()
                    await some()
                    taken.append(time.process_time() - began)
                found[kind] = calls / MESSAGES, min(taken) / MESSAGES
    print(json.dumps(found))

anyio.run(main, backend=sys.argv[1])
"""


def without_an_inbox() -> list[Figure]:
    """A supervisor without an inbox, by one of the last version that had none."""
    with tempfile.TemporaryDirectory() as before:
        if not _check_out(before):
            return []
        return [figure for backend in ("asyncio", "trio") for figure in _compare(before, backend)]


def _compare(before: str, backend: str) -> list[Figure]:
    rounds = [(_run(before, backend), _run(str(_ROOT), backend)) for _ in range(ROUNDS)]
    found = []
    for kind in ("post", "submit"):
        calls, seconds = ([(then[kind][n], now[kind][n]) for then, now in rounds] for n in (0, 1))
        then_us, now_us = (median(pair[n] for pair in seconds) * 1e6 for n in (0, 1))
        found += [
            Figure(
                f"{kind} without an inbox: calls, by those before there was one ({backend})",
                median(now / then for then, now in calls),
                "×",
                1.0,
                detail=f"{calls[0][1]:.0f} against {calls[0][0]:.0f}",
            ),
            Figure(
                f"{kind} without an inbox: CPU, by that before there was one ({backend})",
                median(now / then for then, now in seconds),
                "×",
                1.05,
                detail=f"{now_us:.0f} against {then_us:.0f} µs",
            ),
        ]
    return found


def _check_out(directory: str) -> bool:
    """The packages of that version; returns whether the history has it."""
    done = subprocess.run(
        ["git", "archive", BEFORE, "locks", "lanes", "runtime"], cwd=_ROOT, capture_output=True, check=False
    )
    if done.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return True


def _run(root: str, backend: str) -> dict[str, tuple[float, float]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, backend],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        check=True,
        timeout=LIMIT_S,
    )
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found
