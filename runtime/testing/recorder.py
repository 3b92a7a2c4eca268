"""What has become of the runs of a supervisor, in order: started, waited, emitted, ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lanes import EventStream, Outcome, Run
from locks import _clock

What = Literal["waits", "starts", "emits", "ends"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Something that has become of a run."""

    at: float
    """Seconds since the recorder was made."""
    what: What
    run: Run
    value: Any = None
    """The event, or the `Outcome`."""

    def __str__(self) -> str:
        said = {"emits": f" {self.value!r:.80}", "ends": f", {self.run.state}: {self.run.reason}".rstrip(": ")}
        return f"+{self.at:.3f} s: run {self.run.id} on lane {self.run.lane} {self.what}{said.get(self.what, '')}"


class Recorder:
    """Records what becomes of runs. Its `waits`, `starts` and `ends` are hooks of a supervisor.

    A run that is tried again starts once more. Printed, it is a line for each entry.
    """

    def __init__(self) -> None:
        self.entries: list[Recorded] = []
        self._began = _clock.clock.now()
        self._taps: dict[int, _Tap] = {}

    def __repr__(self) -> str:
        return f"<Recorder of {len(self.entries)} entries>"

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries)) or "nothing was recorded"

    def events(self, *, session: str | None = None, lane: str | None = None) -> list[Any]:
        """What bodies have emitted."""
        return [one.value for one in self._of("emits", session, lane)]

    def outcomes(self, *, session: str | None = None, lane: str | None = None) -> list[Outcome]:
        """How runs have ended, in that order."""
        return [one.value for one in self._of("ends", session, lane)]

    def _of(self, what: What, session: str | None, lane: str | None) -> list[Recorded]:
        return [
            one
            for one in self.entries
            if one.what == what
            and (session is None or one.run.session == session)
            and (lane is None or one.run.lane == lane)
        ]

    # For the supervisor

    def waits(self, run: Run) -> None:
        """A run does not start when it is submitted."""
        self._note("waits", run)

    def starts(self, run: Run) -> None:
        """A run starts, or is tried again."""
        if run.id not in self._taps:
            self._taps[run.id] = tap = _Tap(run, self)
            run._add_stream(tap)
        self._note("starts", run)

    def ends(self, run: Run) -> None:
        """A run has its outcome."""
        self._taps.pop(run.id, None)
        self._note("ends", run, run.outcome)

    def emits(self, run: Run, event: Any) -> None:
        """A body has emitted an event."""
        self._note("emits", run, event)

    def _note(self, what: What, run: Run, value: Any = None) -> None:
        self.entries.append(Recorded(_clock.clock.now() - self._began, what, run, value))


class _Tap(EventStream):
    """Hands each event on at once, and keeps none."""

    __slots__ = ("_of", "_recorder")

    def __init__(self, run: Run, recorder: Recorder) -> None:
        super().__init__(run, 1)
        self._of, self._recorder = run, recorder

    def put(self, event: Any) -> None:
        self._recorder.emits(self._of, event)
