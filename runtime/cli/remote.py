"""What the commands that ask a process share: finding it, asking it, and reporting a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from runtime.status import protocol
from runtime.status.client import Client, NoAnswer, NoProcess, locate
from runtime.status.words import lasting as lasting

from ..trial.output import Output, complain
from ..usage_error import UsageError, one_line

_NO = 1
_LONGEST = 2000


class Refusal(Exception):
    """The process refuses, cannot answer, or has gone. The message is one line."""


class IsFrozen(Exception):
    """Its event loop is."""

    def __init__(self, frozen: protocol.Frozen) -> None:
        super().__init__(frozen.place)
        self.frozen = frozen


class Asking(Protocol):
    """What answers: a process, over its socket or through a store."""

    def ask(self, question: protocol.Question) -> protocol.Answer: ...


_Asking = TypeVar("_Asking", bound=Asking)


def talk(socket: str | None, do: Callable[[Client, Output], object], *, json: bool = False) -> int:
    """Have `do` talk to the process that is meant, and print; returns the exit code. Bounded by what `do` asks.

    Raises:
        UsageError: there is none; nothing was asked.
    """
    try:
        client = Client(locate(socket))
    except NoProcess as error:
        raise UsageError(str(error)) from error
    with client:
        return talk_to(client, do, json=json)


def talk_to(client: _Asking, do: Callable[[_Asking, Output], object], *, json: bool = False) -> int:
    """As `talk`, to this one."""
    output = Output(json=json)
    try:
        do(client, output)
    except Refusal as error:
        complain(printable(str(error)))
        return _NO
    except IsFrozen as error:
        output.result(
            protocol.encoded(protocol.Answer(frozen=error.frozen)).decode().rstrip("\n")
            if json
            else "\n".join(frozen_lines(error.frozen))
        )
        return _NO
    return int(output.failed)


def asked(client: Asking, question: protocol.Question) -> protocol.Answer:
    """What it answers, if that is what was asked for.

    Raises:
        Refusal, IsFrozen: it is not.
    """
    try:
        answer = client.ask(question)
    except NoAnswer as error:
        raise Refusal(str(error)) from error
    if answer.frozen is not None:
        raise IsFrozen(answer.frozen)
    if answer.error is not None:
        raise Refusal(answer.error.message)
    return answer


def frozen_lines(frozen: protocol.Frozen) -> list[str]:
    """A frozen process, for people: the guilty line first."""
    whose = frozen.run or "code of no run"
    return [
        f"process {frozen.pid} is FROZEN: its event loop has been blocked for {lasting(frozen.for_s)} by {whose}",
        f"  at {printable(frozen.place) or 'a place that is not known'}",
        f"  sessions: {printable(frozen.sessions)}",
        "Nothing was done: until that line is through, nothing starts, ends or answers in this process.",
        *(printable(line) for line in frozen.stack.splitlines()),
    ]


def printable(text: str) -> str:
    """What a process has sent, as one line of a bounded length."""
    return one_line(text, _LONGEST)
