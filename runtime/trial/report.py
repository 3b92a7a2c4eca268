"""The result of `lanes run`: figures under fixed names, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from lanes import RunState
from runtime.quantiles import Quantiles, quantiles
from runtime.statistics import Statistics
from runtime.watch.watchdog import EXIT_NEW_PROCESS

from .crash_verdict import CrashFindings
from .figures import Figures, milliseconds
from .ledger import Ledger
from .verdict import Findings, Survey

RED, USAGE, ABANDONED, NEW_PROCESS = 1, 2, 70, EXIT_NEW_PROCESS
_COMPLAINTS_SHOWN = 10


@dataclass(slots=True)
class Result:
    """Everything that is known at the end."""

    ledger: Ledger
    before: Survey
    backend: str
    sessions_dir: str
    seed: int | None = None
    duration_s: float = 0.0
    rss_mb: float = 0.0
    peak_rss_mb: float = 0.0
    loop_lag: Quantiles = field(default_factory=lambda: quantiles([]))
    late_writes_refused: int = 0
    stuck: list[str] = field(default_factory=list)
    """Sessions whose turn is held or waited for when everything should be over."""
    untold: int = 0
    """Messages whose senders have no outcome."""
    policies: dict[str, int] = field(default_factory=dict)
    """What the policies of busy, full and failing lanes have done, by name; what has not happened is not in it."""
    appended: int | None = None
    """Acknowledged writes as the registry counts them, where the harness does not know the messages."""
    abandoned: list[str] = field(default_factory=list)
    """Bodies that still ran when the supervisor stopped."""
    plans_abandoned: bool = False
    restarts_s: list[float] = field(default_factory=list)
    """How long each restart in this process took."""
    on_restart: Callable[[float], object] | None = None
    """Called with each of them."""
    new_process: bool = False
    """Whether a restart was asked for that needs a new process."""
    not_started: list[str] = field(default_factory=list)
    """Runs that were queued when nothing was started any more; their senders have an outcome."""
    service: Figures | None = None
    """What the parent of the processes saw, where there were several."""
    crash: CrashFindings | None = None
    """What the inbox says, where its process was killed."""
    failure: str | None = None
    """Why the harness itself could not go on."""
    signal: int | None = None
    """The signal that cut the ending short, if there was one."""
    findings: Findings = field(default_factory=Findings)

    @property
    def acknowledged(self) -> int:
        """Records that the library has promised to keep."""
        return len(self.ledger.acknowledged) if self.appended is None else self.appended

    @property
    def verified(self) -> int:
        """Of those, the ones found whole and once."""
        return self.findings.verified if self.appended is None else min(self.appended, self.findings.records)

    @property
    def lost(self) -> int:
        """Of those, the rest; and lines of earlier times that are not what they were."""
        missing = 0 if self.appended is None else self.acknowledged - self.verified
        return self.findings.lost + missing

    @property
    def interleaved(self) -> int:
        """Broken new lines, turns inside turns, and writes of dead runs."""
        return self.findings.interleaved + self.ledger.dead_writes

    @property
    def verdict(self) -> Literal["green", "red"]:
        """Green only when nothing is lost, interleaved or stuck, and each sender has an outcome that is true."""
        wrong = self.lost or self.interleaved or self.stuck or self.untold or self.ledger.unanswered or self.failure
        wrong = wrong or self.findings.doubled or (self.service is not None and self.service.wrong)
        wrong = wrong or (self.crash is not None and self.crash.complaints)
        return "red" if wrong else "green"

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        if self.verdict == "red":
            return RED
        if self.new_process:
            return NEW_PROCESS
        if self.abandoned and not self.plans_abandoned:
            return ABANDONED
        return 0 if self.signal is None else 128 + self.signal

    def as_json(self) -> str:
        """One object with the names that machines rely on, and with those of `policies` as far as there are any."""
        told = self.ledger.told
        return json.dumps(
            {
                "messages": self.ledger.posted,
                "answered": told["answered"],
                "timed_out": told["timed_out"],
                "failed": told["failed"],
                "acknowledged": self.acknowledged,
                "verified": self.verified,
                "lost": self.lost,
                "interleaved": self.interleaved,
                "late_writes_refused": self.late_writes_refused,
                "stuck_sessions": len(self.stuck),
                "recovery_ms": milliseconds(quantiles(self.ledger.recoveries_s)),
                "wait_ms": milliseconds(quantiles(self.ledger.waits_s)),
                "loop_lag_ms": milliseconds(self.loop_lag),
                "rss_mb": round(self.rss_mb, 1),
                "duration_s": round(self.duration_s, 3),
                "backend": self.backend,
                "verdict": self.verdict,
                **self.policies,
                **self._restarting(),
                **({} if self.service is None else self.service.as_json()),
                **({} if self.crash is None else self.crash.as_json()),
            }
        )

    def lines(self) -> Iterator[str]:
        """The same for people, and the reasons."""
        told, states = self.ledger.told, self.ledger.states
        cut = f", cut short by signal {self.signal}" if self.signal is not None else ""
        seed = f", seed {self.seed}" if self.seed is not None else ""
        yield f"verdict: {self.verdict}   ({self.backend}, {self.duration_s:.1f} s{seed}{cut})"
        yield (
            f"  messages     {self.ledger.posted}: {told['answered']} answered, {told['timed_out']} timed out, "
            f"{told['failed']} failed   ({', '.join(f'{n} {s}' for s, n in sorted(states.items())) or 'none'})"
        )
        if self.policies:
            yield f"  policies     {', '.join(f'{n} {name}' for name, n in self.policies.items())}"
        if self.service is None and (self.restarts_s or self.new_process):
            longest = f", the longest took {max(self.restarts_s):.2f} s" if self.restarts_s else ""
            needed = "; only a new process helps now" if self.new_process else ""
            yield f"  restarts     {len(self.restarts_s)} in the process{longest}{needed}"
        if self.crash is not None:
            yield from self.crash.lines()
        elif self.service is not None:
            yield from self.service.lines()
        yield (
            f"  records      {self.acknowledged} acknowledged, {self.verified} verified, {self.lost} lost, "
            f"{self.interleaved} interleaved; {self.late_writes_refused} late writes refused"
        )
        yield f"  stuck        {len(self.stuck)} sessions"
        yield f"  recovery     {_figures(quantiles(self.ledger.recoveries_s))}   (deadline to the session's next turn)"
        yield f"  wait         {_figures(quantiles(self.ledger.waits_s))}"
        yield f"  loop lag     {_figures(self.loop_lag)}"
        yield f"  memory       {self.rss_mb:.0f} MB (at most {self.peak_rss_mb:.0f} MB)"
        yield f"  sessions     {self.sessions_dir} ({self.findings.files} files)"
        yield from self.remarks()

    def _restarting(self) -> dict[str, Any]:
        """As far as there is anything: most runs are not restarted, and answer no message twice."""
        found: dict[str, Any] = {}
        if self.restarts_s or self.new_process or self.service is not None:
            found |= {"restarts": len(self.restarts_s), "untold": self.untold}
        if found or self.findings.doubled:
            found["doubled"] = self.findings.doubled
        if self.new_process:
            found["new_process"] = True
        if self.not_started:
            found["not_started"] = self.not_started
        return found

    def remarks(self) -> Iterator[str]:
        """What is wrong, and what was wrong before."""
        if self.failure is not None:
            yield f"  failure      {self.failure}"
        if self.untold:
            yield f"  untold       {self.untold} messages whose senders were never told"
        if self.ledger.dead_writes:
            yield f"  dead writes  {self.ledger.dead_writes} accepted from runs that were over"
        for title, found in (
            ("stuck", self.stuck),
            ("unanswered", [f"{text!r:.80}: its run was done without it" for text in self.ledger.unanswered]),
            ("wrong", self.findings.complaints),
            ("inbox", self.crash.complaints if self.crash is not None else []),
            ("unknown", self.crash.unknown if self.crash is not None else []),
            # Where there are several processes, the next one has started them.
            ("not started", self.not_started if self.service is None else []),
            ("abandoned", self.abandoned),
            ("before", [f"{broken} (left as it is)" for broken in self.before.broken]),
        ):
            for one in found[:_COMPLAINTS_SHOWN]:
                yield f"  {title:<12} {one}"
            if len(found) > _COMPLAINTS_SHOWN:
                yield f"  {title:<12} … and {len(found) - _COMPLAINTS_SHOWN} more"


def policies(now: Statistics, ledger: Ledger) -> dict[str, int]:
    """What the policies of busy, full and failing lanes have done so far; without what has not happened.

    Messages that joined a waiting one (`collected`), were read by a run under way (`steered`), or said again
    (`repeated`); runs that were `superseded`, `dropped` from a full queue, `retried`, or `parked` now.
    """
    totals = [group.totals for group in now.groups.values()]
    found = {
        **{name: ledger.shared[name] for name in ("collected", "steered", "repeated")},
        "superseded": now.runs[RunState.SUPERSEDED],
        "dropped": sum(one.dropped for one in totals),
        "retried": sum(one.retries for one in totals),
        "parked": now.parked,
    }
    return {name: number for name, number in found.items() if number}


def _figures(figures: Quantiles) -> str:
    return f"p50 {figures.p50 * 1000:.1f} ms, p99 {figures.p99 * 1000:.1f} ms, max {figures.max * 1000:.1f} ms"
