"""The command `lanes`, as a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import forks

LANES = str(Path(sys.executable).with_name("lanes"))
LIMIT_S = 120.0


def lanes(*arguments: str | Path, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _process(arguments, cwd=cwd, text=True, stdin=subprocess.DEVNULL, **pipes, **options) as child:
        try:
            stdout, stderr = child.communicate(timeout=LIMIT_S)
        finally:
            child.kill()  # nothing, if it has ended
    return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


def _process(arguments: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """The command as a child: a fork of what has imported it, or the script where its start-up counts."""
    return forks.python([LANES, *map(str, arguments)], **options)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` has printed: one object, and nothing else."""
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@contextmanager
def started(
    *arguments: str | Path, cwd: Path | None = None, log: Path = Path(os.devnull), command: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run it beside the test, with its log lines in a file; killed at the latest when the block is left.

    `command` is what runs the script and its arguments: another program, perhaps, that becomes `lanes`.
    """
    options: dict[str, Any] = {"cwd": cwd, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as stderr:
        if command:
            child = subprocess.Popen([*command, *map(str, arguments)], stderr=stderr, **options)
        else:
            child = _process(arguments, stderr=stderr, **options)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def records(directory: Path) -> list[dict[str, Any]]:
    """Every whole record in a sessions directory, headers left out."""
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if "lanes.session" not in record:
                found.append(record)
    return found


def as_nobody() -> None:
    """In a child: be a user whom the file system refuses something. Root is refused nothing."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
