"""How many instructions the paths of one process take: the same on a busy machine as on an idle one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from ..peers.interface import Backend, Kind, Peer
from .interface import Ask, Cell, NotMeasured, Question, Sample, Scale

_FEW = 100
_COLLECTED = re.compile(r"Collected\s*:\s*(\d+)")
_WITHIN_S = 300.0


def measure(peer: Peer, backend: Backend, *, few: int) -> Sample:
    """In the worker: thousands of instructions for one lock taken and given back, or for one job.

    Raises:
        NotMeasured: there is no valgrind here, or the peer does not run under it.
    """
    if shutil.which("valgrind") is None:
        raise NotMeasured("valgrind is not installed")
    once, thrice = (_count(peer, backend, times * few) for times in (1, 3))
    return Sample({"instructions": (thrice - once) / (2 * few) / 1e3})


def _count(peer: Peer, backend: Backend, count: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m"]
    command += ["runtime.bench.counted", peer.kind, peer.name, backend, str(count)]
    # A fixed seed: the places in hash tables differ from run to run otherwise.
    done = subprocess.run(
        ["env", "PYTHONHASHSEED=0", *command], capture_output=True, text=True, timeout=_WITHIN_S, check=False
    )
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise NotMeasured(f"does not run under valgrind: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1])


def _take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
    return ask("instructions:measure", few=_FEW)


def _question(name: str, title: str, kind: Kind, floor: str) -> Question:
    return Question(
        name=name,
        title=title,
        unit="thousands",
        kind=kind,
        take=_take,
        floor=floor,
        seconds=150,
        longest_cell_s=2 * _WITHIN_S,
        rounds=1,  # the next round would count the same
        only_full=True,
    )


INSTRUCTIONS = _question(
    "instructions", "How many instructions does taking a free lock take, in one process?", "inside", "anyio.Lock"
)
FILE_INSTRUCTIONS = _question(
    "file-instructions", "How many instructions does taking a free lock take, between processes?", "between", "flock"
)
JOB_INSTRUCTIONS = _question(
    "job-instructions", "How many instructions does a job take that does nothing?", "jobs", "anyio.TaskGroup"
)
