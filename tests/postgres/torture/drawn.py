"""What senders send: messages that are drawn from a seed, of four kinds."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from . import varied

STEPS = ("one", "one", "one", "many", "lease", "thread")
LINES = {"many": 3, "lease": 3}
MIXED = 10


class Kind(NamedTuple):
    """One kind of sender, with sessions of its own."""

    name: str

    def sessions(self, few_and_many: tuple[int, int]) -> list[str]:
        """What it chooses from."""
        counts = {"few": few_and_many[0], "many": few_and_many[1], "mixed": MIXED, "varied": len(varied.SESSIONS)}
        return [f"{self.name}{n}" for n in range(counts[self.name])]

    def slower(self, sessions: int) -> float:
        """No session gets more than it can do; where runs are cut short, they may."""
        return 0.5 if self.name == "varied" else max(1.0, 20 / sessions)

    def message(self, rng: random.Random, sessions: list[str], longest_s: float) -> tuple[dict[str, Any], int]:
        """A message, and how many lines its answer has; 0 where that depends."""
        steps = [(rng.choice(STEPS), rng.random() ** 4 * longest_s) for _ in range(rng.randrange(1, 4))]
        session = rng.choice(sessions)
        line = {"lane": self._lane(rng, session), "session": session, "steps": steps}
        return line, 0 if self.name == "varied" else 2 + sum(LINES.get(kind, 1) for kind, _ in steps)

    def _lane(self, rng: random.Random, session: str) -> str:
        if self.name == "varied":
            return rng.choice(varied.SENT)
        lanes = ("once", "again")  # those of one session are in one order, over all nodes
        return rng.choice(lanes) if self.name == "mixed" else lanes[int(session[-1]) % 2]


KINDS = tuple(map(Kind, ("few", "many", "varied", "mixed")))
