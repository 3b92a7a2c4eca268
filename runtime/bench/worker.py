"""`python -m runtime.bench.worker`: a process that measures one peer, asked by a line of JSON and answering by one.

Standard output carries the answers alone: what a peer prints there goes to standard error.
"""

from __future__ import annotations

import os
import resource
import sys
from importlib import import_module
from typing import Any

import msgspec

from .peers import peer_of
from .peers.interface import Backend, Kind
from .questions.interface import NotMeasured, Sample

_LONGEST_ERROR = 300


class Asked(msgspec.Struct):
    """A question to a worker: call `module:function` of `runtime.bench.questions`."""

    function: str
    kind: Kind
    peer: str
    backend: Backend
    arguments: dict[str, Any]


class Answered(msgspec.Struct):
    """The answer; `error` if there is no sample."""

    sample: Sample | None = None
    error: str = ""


def answer(asked: Asked) -> Answered:
    """Measure. Whatever the peer raises is the answer: it says nothing about the next cell."""
    module, _, function = asked.function.partition(":")
    try:
        measure = getattr(import_module(f".questions.{module}", __package__), function)
        return Answered(measure(peer_of(asked.kind, asked.peer), asked.backend, **asked.arguments))
    except NotMeasured as error:
        return Answered(error=str(error))
    except BaseException as error:  # also what a peer raises to leave the process
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        return Answered(error=f"{type(error).__name__}: {error}"[:_LONGEST_ERROR])


def _limit_memory() -> None:
    """Let a million tasks fail in this process, before the machine ends some other one for want of memory."""
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (half if hard == resource.RLIM_INFINITY else min(half, hard), hard))


def serve() -> None:
    """Answer until the asking process has gone."""
    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(b"\n")  # ready
    decoder = msgspec.json.Decoder(Asked)
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(answer(decoder.decode(line))) + b"\n")


if __name__ == "__main__":
    serve()
