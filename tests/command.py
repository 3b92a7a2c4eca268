"""The real command `lanes`, as a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LANES = str(Path(sys.executable).with_name("lanes"))
LIMIT_S = 120.0


def lanes(*arguments: str | Path, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [LANES, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` has printed: one object, and nothing else."""
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@contextmanager
def started(
    *arguments: str | Path, cwd: Path | None = None, log: Path = Path(os.devnull), command: Sequence[str] = (LANES,)
) -> Iterator[subprocess.Popen[str]]:
    """Run it beside the test, with its log lines in a file; killed at the latest when the block is left.

    `command` is what runs the arguments: another program, perhaps, that becomes `lanes`.
    """
    with log.open("w") as stderr:
        child = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
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
