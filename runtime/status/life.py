"""The life of one run, for whoever looks at it: what it waited for and when, what belongs to it, and what it emits.

A run keeps nothing that it has emitted. While somebody looks, a bounded stream does: of few runs, until another
question finds that nobody has asked for a while. After the last question, what was looked at last stays: there is no
task that would let it go.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

import msgspec

from lanes import Run
from lanes.core.execution import execution_of
from lanes.events import EventStream
from locks import _clock

from . import protocol, rows
from .protocol import Answer, text
from .work import Worked, bar_of

_MOST_WATCHED, _MOST_EVENTS = 8, 50
_UNUSED_S = 10.0
_MOST_RELATED, _MOST_RIGHTS = 30, 20


class Lives:
    """Answers about single runs of one supervisor. On the event loop's thread."""

    def __init__(self, sup: Worked) -> None:
        self._sup = sup
        self._watched: dict[int, _Watched] = {}

    def look(self, question: protocol.Life) -> Answer | None:
        """A run's life; `None` if the run is not known."""
        run, now = self._sup.find(question.run), _clock.clock.now()
        self._let_go(now)
        if run is None:
            return None
        events = self._events(run, now)
        part = rows.LifePart(
            bar=bar_of(run, now),
            parent=None if run.parent is None or (one := self._sup.find(run.parent)) is None else bar_of(one, now),
            children=[bar_of(one, now) for one in self._children(run)[:_MOST_RELATED]],
            rights=self._rights(run),
            events=list(events.kept) if question.content else [],
            emitted=events.taken + events.stream.dropped,
            missed=events.stream.dropped,
        )
        return Answer(life=part)

    def _children(self, run: Run) -> list[Run]:
        """Those that it has submitted, and that are live or kept; the latest first."""
        board = self._sup._scheduler.board
        known = chain((one.run for one in reversed(board.live.values())), board.history.latest(5 * rows.MOST_BARS))
        return [one for one in known if one.parent == run.id]

    def _rights(self, run: Run) -> list[rows.Right]:
        execution = execution_of(run)
        if execution is None:
            return []
        holders = self._sup._scheduler.board.registry.statistics().holders
        return [
            rows.Right(
                path=text(one.path),
                right=one.right,
                held_s=one.held_s,
                remaining_s=one.remaining_s,
                waiting=one.waiting,
            )
            for one in holders
            if one.holder == execution.fence.holder
        ][:_MOST_RIGHTS]

    def _events(self, run: Run, now: float) -> _Watched:
        if run.id not in self._watched:
            while len(self._watched) >= _MOST_WATCHED:
                self._watched.pop(min(self._watched, key=lambda number: self._watched[number].asked_at)).stream.close()
            self._watched[run.id] = _Watched(run.events(_MOST_EVENTS))
        found = self._watched[run.id]
        found.look(now)
        return found

    def _let_go(self, now: float) -> None:
        for number, one in list(self._watched.items()):
            if now - one.asked_at > _UNUSED_S:
                self._watched.pop(number).stream.close()


class _Watched:
    """What is known of a run's events since somebody looks."""

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self.kept: deque[str] = deque(maxlen=_MOST_EVENTS)
        self.taken = 0
        self.asked_at = 0.0

    def look(self, now: float) -> None:
        """Take what has come."""
        self.asked_at = now
        for event in self.stream.take():
            self.taken += 1
            self.kept.append(text(_shown(event), rows.LONGEST_CONTENT))


def _shown(event: object) -> str:
    try:
        return event if isinstance(event, str) else msgspec.json.encode(event, enc_hook=str).decode()
    except Exception:  # whatever a body emits
        return str(type(event))
