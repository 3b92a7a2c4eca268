"""Traffic that is made up from a description: the same seed gives the same messages."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from lanes.spec import WhenBusy

from .traffic import BEHAVIOURS, Behaviour, Line

_MOST_LINES = 1_000_000
_TAKEN_OVER = ("fails", "turn", "context_mb", "again", "when_busy")
"""The fields of a load that each of its messages has as they are."""


class InvalidLoad(Exception):
    """A load contradicts itself."""


class Load(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One kind of traffic. Ranges are `[least, most]`; all times are in seconds, unscaled."""

    lane: str
    """`{session}` in it stands for the session's key."""
    sessions: int | list[str] | None = None
    """The sessions, by key or by number; without any, the runs conduct none."""
    every: float | None = None
    """The mean time between two messages, which then arrive at random."""
    count: int | None = None
    """Instead: so many messages, spread evenly from `start` to the end."""
    start: float = 0.0
    end: float | None = None
    """When the last one arrives; by default at the end of the scenario."""
    text: str = "message {number} to {session}"
    think: float | tuple[float, float] = 0.0
    behave: Behaviour | dict[Behaviour, float] = "ok"
    """One behaviour, or the weight of each."""
    fails: int = 1
    hold: float | tuple[float, float] | None = None
    turn: bool = True
    context_mb: float = 0.0
    again: int = 0
    routes: list[str] = []
    """Where the answers go, one after the other; nowhere in particular by default."""
    dedupe: str | None = None
    """`{number}` and `{session}` in it stand for the message's own."""
    when_busy: WhenBusy | None = None


def generate(loads: Sequence[Load], *, duration: float, seed: int) -> list[Line]:
    """All messages of some loads.

    Raises:
        InvalidLoad: a load contradicts itself.
    """
    found: list[Line] = []
    for index, load in enumerate(loads):
        where = f"load[{index}]"
        _check(load, where)
        # A generator each, so that adding a load leaves the others' messages as they were.
        found += _lines(load, random.Random(f"{seed}/{index}"), duration, where)
    return found


def _check(load: Load, where: str) -> None:
    if (load.every is None) == (load.count is None):
        raise InvalidLoad(f"{where}: every, count: exactly one of them is needed")
    if load.every is not None and not load.every > 0:
        raise InvalidLoad(f"{where}.every: {load.every!r} is not allowed; allowed: seconds above 0")
    if load.count is not None and not 0 <= load.count <= _MOST_LINES:
        raise InvalidLoad(f"{where}.count: {load.count!r} is not allowed; allowed: 0 to {_MOST_LINES}")
    if load.sessions == [] or (isinstance(load.sessions, int) and load.sessions < 1):
        raise InvalidLoad(f"{where}.sessions: {load.sessions!r} is not allowed; allowed: a number from 1, or keys")
    if "{session}" in load.lane and load.sessions is None:
        raise InvalidLoad(f"{where}.sessions: is missing; lane {load.lane!r} needs some")
    if isinstance(load.behave, dict) and not _usable([*load.behave.values()]):
        raise InvalidLoad(
            f"{where}.behave: {load.behave!r} is not allowed; allowed: weights above 0 for {', '.join(BEHAVIOURS)}"
        )
    for field, value in (("think", load.think), ("hold", load.hold)):
        if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
            raise InvalidLoad(f"{where}.{field}: {list(value)} is not allowed; allowed: [least, most]")


def _usable(weights: list[float]) -> bool:
    return bool(weights) and all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0


def _lines(load: Load, rng: random.Random, duration: float, where: str) -> list[Line]:
    keys, order = _keys(load), list[str | None]()
    weights = load.behave if isinstance(load.behave, dict) else {load.behave: 1.0}
    found: list[Line] = []
    for number, at in enumerate(_instants(load, rng, duration, where)):
        # Everyone gets a turn in a round, in a new order each time: no session is left out, none is predictable.
        order = order or rng.sample(keys, len(keys))
        key = order.pop()
        named = load.lane.replace("{session}", key or "")
        of_its_own = {"{number}": str(number + 1), "{session}": key or "nobody"}
        found.append(
            Line(
                lane=named,
                at=at,
                session=key,
                text=_filled(load.text, of_its_own),
                think=_drawn(load.think, rng),
                behave=rng.choices([*weights], [*weights.values()])[0],
                hold=None if load.hold is None else _drawn(load.hold, rng),
                route=load.routes[number % len(load.routes)] if load.routes else None,
                dedupe=None if load.dedupe is None else _filled(load.dedupe, of_its_own),
                **{name: getattr(load, name) for name in _TAKEN_OVER},
            )
        )
    return found


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _keys(load: Load) -> list[str | None]:
    if isinstance(load.sessions, int):
        return [f"chat-{n:02}" for n in range(1, load.sessions + 1)]
    return [*load.sessions] if load.sessions is not None else [None]


def _instants(load: Load, rng: random.Random, duration: float, where: str) -> list[float]:
    end = duration if load.end is None else min(load.end, duration)
    if load.count is not None:
        step = max(0.0, end - load.start) / max(1, load.count - 1)
        return [load.start + step * n for n in range(load.count)]
    assert load.every is not None
    if (end - load.start) / load.every > _MOST_LINES:
        raise InvalidLoad(f"{where}.every: {load.every!r} makes more than {_MOST_LINES} messages in {end:g} s")
    found, at = [], load.start + rng.expovariate(1 / load.every)
    while at <= end:
        found.append(at)
        at += rng.expovariate(1 / load.every)
    return found


def _drawn(value: float | tuple[float, float], rng: random.Random) -> float:
    return round(rng.uniform(*value), 4) if isinstance(value, tuple) else value
