"""What is measured across restarts and processes, beside what the files say: the probe, the loop's lag, generations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runtime.quantiles import Quantiles, quantiles

PROBE_WITHIN_S = 0.2
"""What a health check should be answered within. A figure to look at, not a verdict: machines are noisy."""
LAG_WITHIN_S = 0.05
"""The same for the 99th percentile of the loop's lag."""


@dataclass(slots=True)
class Figures:
    """Of all processes of one service together."""

    processes: int = 0
    """How many were started."""
    replaced: int = 0
    """Of those, the ones that ended because only a new process helped."""
    died: int = 0
    """And the ones that were killed."""
    restarts_s: list[float] = field(default_factory=list)
    """How long each restart took that stayed in its process."""
    probes_s: list[float] = field(default_factory=list)
    """How long each health check waited for its answer."""
    probed: Counter[str] = field(default_factory=Counter)
    """What the answers were: ok, draining, none."""
    lags_s: list[float] = field(default_factory=list)
    away_s: float = 0.0
    """The longest time without a process that takes work."""
    overlaps: int = 0
    """Generations that were there at the same time. Must stay 0."""
    old_uses: int = 0
    """Runs that worked with the secret of an old generation. Must stay 0."""
    unbounded: int = 0
    """Restarts, and ends, that did not come in time. Must stay 0."""

    @property
    def wrong(self) -> bool:
        """Whether something happened that must not."""
        return bool(self.overlaps or self.old_uses or self.unbounded)

    def as_json(self) -> dict[str, Any]:
        """Under the names that machines rely on; `restarts` and `doubled` are always among them."""
        return {
            "processes": self.processes,
            "new_processes": self.replaced,
            "died": self.died,
            "probes": len(self.probes_s),
            "probe_ms": milliseconds(quantiles(self.probes_s)),
            "away_s": round(self.away_s, 3),
            "overlaps": self.overlaps,
            "old_secrets": self.old_uses,
            "unbounded": self.unbounded,
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        died = f", {self.died} killed" if self.died else ""
        longest = f", the longest took {max(self.restarts_s):.2f} s" if self.restarts_s else ""
        late = f", {self.unbounded} not in time" if self.unbounded else ""
        yield f"  restarts     {len(self.restarts_s)} in the process{longest}{late}"
        away = f"at most {self.away_s:.1f} s without one" if self.away_s else "none was missing"
        yield f"  processes    {self.processes}: {self.replaced} replaced{died}; {away}"
        yield f"  generations  {self.overlaps} overlaps, {self.old_uses} uses of an old secret"
        probe, lag = quantiles(self.probes_s), quantiles(self.lags_s)
        answers = ", ".join(f"{number} {what}" for what, number in sorted(self.probed.items())) or "none"
        yield f"  probe        {_figures(probe)}{_over(probe.max, PROBE_WITHIN_S, 'max')}   ({answers})"
        if over := _over(lag.p99, LAG_WITHIN_S, "p99"):
            yield f"  loop lag    {over}"


def milliseconds(figures: Quantiles) -> dict[str, float]:
    """Seconds, for machines."""
    return {name: round(getattr(figures, name) * 1000, 3) for name in ("p50", "p99", "max")}


def _over(found: float, limit: float, which: str) -> str:
    return f" {which} is over {limit * 1000:.0f} ms" if found > limit else ""


def _figures(found: Quantiles) -> str:
    return f"p99 {found.p99 * 1000:.1f} ms, max {found.max * 1000:.1f} ms"
