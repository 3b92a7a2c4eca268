"""`python -m runtime.bench.counted KIND PEER BACKEND COUNT`: does something cheap so often, to be counted by callgrind.

The difference of two counts is the cost of the additional ones alone: start, imports and end are in both.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from typing import get_args

import anyio

from .peers import peer_of
from .peers.interface import Backend, Kind
from .questions import cost, jobs


def main(kind: Kind, name: str, backend: Backend, count: int) -> None:
    """Take and give back a free lock, or run a job that does nothing, `count` times."""
    peer = peer_of(kind, name)
    if kind == "jobs":
        anyio.run(partial(jobs.alone_s, peer, count), backend=backend)
        return
    with tempfile.TemporaryDirectory() as directory:
        cost.pairs_s(peer, backend, os.path.join(directory, "session.jsonl"), count)


if __name__ == "__main__":
    _, given, name, loop, number = sys.argv
    (kind,) = (one for one in get_args(Kind) if one == given)
    (backend,) = (one for one in get_args(Backend) if one == loop)
    main(kind, name, backend, int(number))
