"""The specification of a pool: a limit that waits, shared by runs of all lanes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from . import checks
from .errors import InvalidLane


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A limit that runs of all lanes share and wait for, such as that of a provider of models.

        PoolSpec("anthropic", slots=8, rate=(60, 60.0), tokens=(100_000, 60.0))

    Each limit that is given holds by itself. They are limits of one process: several processes that share a provider's
    limit get a part of it each.

    Args:
        name: what bodies call it.
        slots: grants that may be held at a time.
        rate: how many grants may begin in how many seconds: `(60, 60.0)`. So many begin at most in each stretch of that
            length, wherever it starts.
        tokens: how many tokens grants may have in how many seconds. Those of a grant count from its beginning until so
            many seconds after they were settled, so it does not matter when the provider counts them.
        recovery: seconds in which a limit that `PoolGrant.throttled` has lowered would come back from nothing.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    name: str
    _: KW_ONLY
    slots: int | None = None
    rate: tuple[int, float] | None = None
    tokens: tuple[int, float] | None = None
    recovery: float = 60.0

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InvalidLane(f"name: {checks.shown(self.name)} is not allowed; allowed: a printable name")
        where = f"pool {checks.shown(self.name)}, "
        if self.slots is None and self.rate is None and self.tokens is None:
            raise InvalidLane(f"{where}slots, rate, tokens: none is given, so it limits nothing; allowed: at least one")
        if self.slots is not None:
            checks.whole(where + "slots", self.slots, 1)
        if self.rate is not None:
            object.__setattr__(self, "rate", _window(where + "rate", self.rate))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", _window(where + "tokens", self.tokens))
        checks.seconds(where + "recovery", self.recovery)


def _window(field: str, given: Any) -> tuple[int, float]:
    """So many in so many seconds."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InvalidLane(
            f"{field}: {checks.shown(given)} is not allowed; allowed: how many, and in how many seconds, as (60, 60.0)"
        )
    return checks.whole(field, given[0], 1), checks.seconds(field, given[1])
