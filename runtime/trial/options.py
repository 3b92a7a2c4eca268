"""The command line of `lanes run`, parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.log import LogFormat

from .scenario import Overrides

Backend = Literal["asyncio", "trio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `lanes run` was asked for."""

    target: str | None = None
    backend: Backend = "asyncio"
    sessions: str | None = None
    scale: float | None = None
    seed: int | None = None
    duration: float | None = None
    json: bool = False
    log_format: LogFormat = "console"
    trace: str | None = None
    socket: str | None = None
    web: int | None = None


def overrides_of(options: Options) -> Overrides:
    """What the command line sets instead of the scenario."""
    return Overrides(scale=options.scale, seed=options.seed, duration=options.duration)
