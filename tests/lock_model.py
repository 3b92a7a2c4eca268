"""Suite H1: what a lock registry should do, as a model without locks, descriptors, loops or threads.

A process is a number, a session a number, an instant a float. Everything happens at one instant, in one call, and each
call returns nothing: what has become of whom stands in the asks.

- A right is free, or one claim has it. Who asked first gets it next, whichever process he asks in.
- A claim belongs to a run or to a task. A run that asks again shares what it has or waits for: a claim has handles.
- At its deadline an obedient block leaves; at the end of the grace the claim is lost, whoever still holds it.
- Who has lost a claim, or whose run is over, or whose file was replaced, writes nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

GRACE = 0.125
MAX_HOLD = 0.75
AFTER_THE_LOOP = 0.02
"""The steward takes a run's rights so long after its last instant, because its scheduler comes first."""

TURN, WRITE = 0, 1


@dataclass(eq=False)
class Run:
    """A run, which may have several tasks."""

    number: int
    end_at: float = math.inf
    """From when on it writes nothing."""
    closed: str = ""
    """Why it writes nothing, once it does not."""

    def refusal(self, now: float) -> str:
        """What a write of it is told; empty when it is legal."""
        return self.closed or ("RunEnded" if now >= self.end_at else "")


@dataclass(eq=False)
class Ask:
    """What one task asked for: a block under a right, or one append."""

    number: int
    process: int
    file: int
    right: int
    arrived: float
    run: Run | None = None
    stubborn: bool = False
    """Its block does not end when it is cancelled."""
    supersedes: bool = False
    give_up_at: float = math.inf
    max_hold: float = MAX_HOLD
    idle: float | None = None
    records: list[int] | None = None
    """What it appends, if it is an append; then it is over."""
    under: Ask | None = None
    """The block with a turn that this append belongs to."""
    claim: Claim | None = None
    state: str = "waiting"
    """waiting, holding or over."""
    outcome: str = ""
    """How it ended: left, raised, cancelled, or the name of an error."""
    appending: Ask | None = None
    """The append that its block waits for."""
    answer: str = ""
    """What its block's last append was told."""

    @property
    def identity(self) -> object:
        """Who shares with whom."""
        return self.run or (self.under or self)


@dataclass(eq=False)
class Claim:
    """One request for a right, with everybody who shares it."""

    first: Ask
    handles: list[Ask]
    held: bool = False
    acquired: float = 0.0
    progressed: float = 0.0
    lost: str = ""
    told: bool = False
    """Whether its deadline has passed."""
    stale: bool = False
    """Whether its file has lost its name."""

    @property
    def deadline(self) -> float:
        """When its blocks are told to end."""
        first = self.first
        own = self.acquired + first.max_hold
        return own if first.idle is None else min(own, self.progressed + first.idle)

    @property
    def revoke_at(self) -> float:
        """When it is lost."""
        run = self.first.run
        return min(self.deadline + GRACE, math.inf if run is None else run.end_at + AFTER_THE_LOOP)

    def refusal(self, now: float) -> str:
        """What a write under it is told; empty when it is legal."""
        run = self.first.run
        return self.lost or (run.refusal(now) if run else "") or ("LeaseLost" if self.stale or not self.held else "")


@dataclass(eq=False)
class Session:
    """One file: its records, and who holds and waits for its two rights."""

    records: list[int] = field(default_factory=list)
    generation: int = 0
    """Rises when another file gets the name."""
    holder: list[Claim | None] = field(default_factory=lambda: [None, None])
    waiting: tuple[list[Claim], list[Claim]] = field(default_factory=lambda: ([], []))
    """In order of arrival over all processes."""
    foreign: bool = False
    """Whether a foreign program holds it, so that nobody gets to write."""


class Model:
    """All sessions, as all processes together should treat them."""

    def __init__(self, files: int) -> None:
        self.now = 0.0
        self.files = [Session() for _ in range(files)]
        self.overtaking = False
        """Whether a right was taken away that another process may have by now, before who waits for it longer here: it
        is unlocked at once, from whatever thread, and the loop hears of it later."""

    # What tasks do

    def ask(self, ask: Ask) -> None:
        """A task asks for a right; without anybody to wait for, it gets it."""
        session = self.files[ask.file]
        if ask.run is not None and (refusal := ask.run.refusal(self.now)):
            self._end(ask, refusal)
            return
        holder, waiting = session.holder[ask.right], session.waiting[ask.right]
        if holder is not None and holder.first.identity is ask.identity and holder.first.process == ask.process:
            self._share(holder, ask)
            return
        for claim in waiting:
            if ask.run is not None and claim.first.run is ask.run and claim.first.process == ask.process:
                self._share(claim, ask)
                return
        claim = ask.claim = Claim(ask, [ask])
        if ask.supersedes and holder is not None:
            waiting.insert(0, claim)
            self.lose(holder, "Superseded")
            return
        waiting.append(claim)
        self.go_on(ask.file, ask.right, ask.process)

    def go_on(self, file: int, right: int, process: int | None = None) -> bool:
        """Let the next one have a right if it is free; returns whether somebody got it.

        Args:
            process: where it was given back. There, the next one goes on in that instant; another process finds out
                later.
        """
        session = self.files[file]
        waiting = session.waiting[right]
        if session.holder[right] is not None or not waiting or (session.foreign and right == WRITE):
            return False
        if process is not None and waiting[0].first.process != process:
            return False
        claim = waiting.pop(0)
        session.holder[right] = claim
        claim.held, claim.acquired = True, self.now
        claim.progressed = claim.acquired
        for ask in list(claim.handles):
            self._enter(ask)
        return True

    def leave(self, ask: Ask, how: str = "left") -> None:
        """A block ends: left, raised or cancelled."""
        claim = ask.claim
        assert claim is not None
        if how == "left":
            how = claim.lost or ("LeaseExpired" if self.now >= claim.deadline else "left")
        self._end(ask, how)

    def append(self, ask: Ask, records: list[int], new: Ask) -> None:
        """A block appends: at once under a write lease, through a momentary one under a turn."""
        claim = ask.claim
        assert claim is not None
        ask.answer = claim.refusal(self.now)
        if ask.right == WRITE:
            if not ask.answer:
                self.files[ask.file].records += records
                ask.answer = "ok"
        elif not ask.answer:
            new.under, new.records, ask.appending = ask, records, new
            self.ask(new)

    def progress(self, ask: Ask) -> None:
        """A block starts its idle time anew; not after its deadline."""
        claim = ask.claim
        if claim is not None and claim.held and self.now < claim.deadline:
            claim.progressed = self.now

    # What is done to them

    def lose(self, claim: Claim, kind: str) -> None:
        """A right is taken away; whoever obeys leaves."""
        first = claim.first
        processes = [waiting.first.process for waiting in self.files[first.file].waiting[first.right]]
        if kind != "Superseded" and processes[:1] == [first.process] and len(set(processes)) > 1:
            self.overtaking = True
        claim.lost = kind
        if first.right == TURN and first.run is not None and not first.run.closed:
            first.run.closed = "RunEnded" if self.now >= first.run.end_at else kind
        for ask in list(claim.handles):
            if not ask.stubborn:
                self._end(ask, kind)
        self._give_back(claim)

    def revoke(self, process: int, file: int) -> None:
        """Both rights of a session are taken away from whoever has them in a process."""
        for holder in list(self.files[file].holder):
            if holder is not None and holder.first.process == process:
                self.lose(holder, "Revoked")

    def end(self, run: Run) -> None:
        """A run is over."""
        run.closed = run.closed or "RunEnded"
        for session in self.files:
            for holder in list(session.holder):
                if holder is not None and holder.first.run is run:
                    self.lose(holder, "RunEnded")

    def replace(self, ask: Ask, records: list[int]) -> None:
        """The holder puts a new file in the place of its session's; in other processes, waiters look anew."""
        session = self.files[ask.file]
        session.records, session.generation = records, session.generation + 1
        for waiter in [one for waiting in session.waiting for claim in waiting for one in claim.handles]:
            if waiter.process != ask.process and waiter.run is not None and (why := waiter.run.refusal(self.now)):
                self._end(waiter, why)

    def rename(self, file: int, records: list[int]) -> None:
        """Another file gets the name."""
        session = self.files[file]
        session.records, session.generation = records, session.generation + 1
        for holder in session.holder:
            if holder is not None:
                holder.stale = True

    # Time

    def due(self) -> list[float]:
        """The instants, from now on, at which something happens by itself."""
        found = []
        for claim in self._claims():
            if claim.held:
                found.append(claim.revoke_at if claim.told else min(claim.deadline, claim.revoke_at))
            else:
                found += [ask.give_up_at for ask in claim.handles]
        return sorted(instant for instant in found if instant != math.inf)

    def happen(self) -> None:
        """What happens now by itself."""
        for claim in self._claims():
            if claim.held and not claim.lost and self.now >= claim.revoke_at:
                self.lose(claim, "Revoked")
            elif claim.held and not claim.told and self.now >= claim.deadline:
                claim.told = True
                for ask in list(claim.handles):
                    if not ask.stubborn:
                        self._end(ask, "LeaseExpired")
            elif not claim.held:
                for ask in list(claim.handles):
                    if self.now >= ask.give_up_at:
                        self._end(ask, "LeaseTimeout")

    # Counts

    def counts(self, process: int) -> tuple[int, int, int]:
        """What a process has: rights held, claims that wait, files that either is about."""
        mine = [claim for claim in self._claims() if claim.first.process == process]
        held = sum(claim.held for claim in mine)
        return held, len(mine) - held, len({claim.first.file for claim in mine})

    # Internals

    def _claims(self) -> list[Claim]:
        return [
            claim
            for session in self.files
            for right in (TURN, WRITE)
            for claim in (session.holder[right], *session.waiting[right])
            if claim is not None
        ]

    def _share(self, claim: Claim, ask: Ask) -> None:
        claim.handles.append(ask)
        ask.claim = claim
        if claim.held:
            self._enter(ask)

    def _enter(self, ask: Ask) -> None:
        """An ask has its right."""
        claim = ask.claim
        assert claim is not None
        if ask.state == "over":
            return
        ask.state = "holding"
        refusal = ask.run.refusal(self.now) if ask.run is not None else ""
        if ask.under is not None and ask.under.claim is not None:
            refusal = ask.under.claim.refusal(self.now)
        if refusal:
            self._end(ask, refusal)
        elif ask.records is not None:
            self.files[ask.file].records += ask.records
            self._end(ask, "left")

    def _end(self, ask: Ask, outcome: str) -> None:
        """An ask is over, and gives back what it had."""
        ask.state, ask.outcome = "over", outcome
        if ask.under is not None:
            ask.under.appending, ask.under.answer = None, "ok" if outcome == "left" else outcome
        if ask.appending is not None:
            self._end(ask.appending, "cancelled")
        claim = ask.claim
        if claim is not None and ask in claim.handles:
            claim.handles.remove(ask)
            if not claim.handles:
                self._give_back(claim)

    def _give_back(self, claim: Claim) -> None:
        file, right, process = claim.first.file, claim.first.right, claim.first.process
        session = self.files[file]
        claim.held = False
        if session.holder[right] is claim:
            session.holder[right] = None
        elif claim in session.waiting[right]:
            session.waiting[right].remove(claim)
        else:
            return
        self.go_on(file, right, process)
