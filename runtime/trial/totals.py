"""The totals over several processes: the outcome of each message, however many times it was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from . import verdict, wire
from .figures import Figures
from .ledger import Acknowledged, Told
from .report import Result

_AGAIN = "cancelled"
"""The state of a message whose sender is to send again."""


class ServiceTotals:
    """Filled from what the processes report; what they could not report any more is read in the files.

    Invariant: a message is in `_told` at most once, with the last outcome that its sender got.
    """

    def __init__(self, result: Result, service: str, messages: int) -> None:
        self.result = result
        self.service = service
        self.figures = Figures()
        self.ended = False
        """Whether the present process has sent its last report."""
        self._messages = messages
        self._sent: set[str] = set()
        self._told: dict[str, tuple[Told, str]] = {}

    def begin(self, number: int) -> None:
        """Note the start of the n-th process."""
        self.figures.processes, self.ended = number, False

    def note(self, event: wire.Event) -> None:
        """Note what a process reports."""
        figures, ledger = self.figures, self.result.ledger
        match event:
            case wire.Posted():
                self._sent.add(event.name)
            case wire.Outcome():
                self._told[event.name] = (event.told, event.state)
            case wire.Promised():
                if event.key in ledger.acknowledged:
                    self.result.failure = f"record {event.key} was acknowledged twice"
                ledger.acknowledged[event.key] = Acknowledged(event.path, event.fingerprint)
            case wire.Probed():
                figures.probes_s.append(event.took_s)
                figures.probed[event.answer] += 1
            case wire.Restarted():
                figures.restarts_s.append(event.took_s)
            case wire.Ended():
                self._add(event)
            case wire.Ready():
                pass

    def told(self) -> Counter[str]:
        """Messages by what became of them so far."""
        return Counter(told for told, _ in self._told.values())

    def left(self) -> list[int]:
        """The messages of the plan, by number, that are to be sent now: never sent, never told, or told to try again.

        A message that is answered in the files is not sent again, whatever its outcome: senders read the files.
        """
        answered = self._answers()
        names = (wire.name_of(self.service, number) for number in range(self._messages))
        return [
            number
            for number, name in enumerate(names)
            if name not in answered and self._told.get(name, ("", _AGAIN))[1] == _AGAIN
        ]

    def close(self) -> None:
        """Fill in the result, once all processes are over."""
        result, answered = self.result, self._answers()
        for name in self._sent & answered.keys():
            self._told[name] = ("answered", "done")
        ledger = result.ledger
        ledger.posted = len(self._sent)
        ledger.told, ledger.states = self.told(), Counter(state for _, state in self._told.values())
        ledger.unanswered += [
            name for name, (told, _) in self._told.items() if told == "answered" and name not in answered
        ]
        result.untold = len(self._sent - self._told.keys())
        result.restarts_s = self.figures.restarts_s
        result.service = self.figures

    def _answers(self) -> Mapping[str, int]:
        return verdict.examine(self.result.sessions_dir, self.result.before, {}).answers

    def _add(self, end: wire.Ended) -> None:
        result, ledger, figures = self.result, self.result.ledger, self.figures
        self.ended = True
        figures.lags_s += end.lags_s
        figures.overlaps += end.overlaps
        figures.old_uses += end.old_uses
        ledger.waits_s += end.waits_s
        ledger.recoveries_s += end.recoveries_s
        ledger.unanswered += end.unanswered
        ledger.dead_writes += end.dead_writes
        result.stuck += end.stuck
        result.late_writes_refused += end.late_writes_refused
        result.failure = result.failure or end.failure
        result.not_started += end.not_started
        result.abandoned += end.abandoned
        result.policies = dict(Counter(result.policies) + Counter(end.policies))
        result.rss_mb, result.peak_rss_mb = end.rss_mb, max(result.peak_rss_mb, end.peak_rss_mb)


def numbered(path: str, number: int) -> str:
    """The path of the n-th process's own file."""
    file = Path(path)
    return path if number == 1 else str(file.with_name(f"{file.stem}-{number}{file.suffix}"))
