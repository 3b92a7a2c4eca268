"""Other limits while everything runs: lanes, groups and pools are changed together, or not at all.

What is asked for is compared with what there is, and with the work that waits, before anything has changed. Capacities,
slots and pools count at once: where there is more room, runs start, and where there is less, those that run go on, and
no new one starts until there is room again. Timeouts and policies count for what is submitted from then on: work that
waits or runs keeps those under which its sender submitted it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from locks import _clock, _effects
from locks._events import log
from locks._loop import running_loop

from .. import checks
from ..errors import InvalidLane, wrong_loop
from ..pool_spec import PoolSpec
from ..queues.groups import Group
from ..queues.pool import Pool
from ..spec import GroupSpec, LaneSpec
from ..spec_table import SpecTable
from .board import Board
from .phase import Phase
from .pools import Pools
from .start import Starting


class Configuring:
    """Changes the limits of one scheduler. On the event loop's thread."""

    def __init__(self, board: Board, starting: Starting, pools: Pools) -> None:
        self._board = board
        self._starting = starting
        self._pools = pools
        self.changes: tuple[str, ...] = ()
        """What the last call has changed, in words."""
        self.changed_at: float | None = None

    def configure(
        self, lanes: Iterable[LaneSpec], groups: Iterable[GroupSpec], pools: Iterable[PoolSpec]
    ) -> tuple[str, ...]:
        """Change what is specified; returns what has changed, in words.

        Not refused, and not looked for: with less room a run may wait for what can no longer come, a child that needs
        the place of its parent, say. An operator may have to lower a limit at once, and deadlines bound those waits.

        Raises:
            InvalidLane: it is not allowed, or contradicts what there is or waits. Nothing has changed.
            WrongThread: on another thread than the event loop's.
        """
        board = self._board
        if board.serving and running_loop() is not board.loop:
            raise wrong_loop("configure belongs to the event loop's thread")
        new = board.specs.changed(lanes, groups, pools)
        self._refuse_stranding(new)
        changes = tuple(_changes(board.specs, new))
        if changes:
            self._change(new, changes)
        return changes

    def _refuse_stranding(self, new: SpecTable) -> None:
        """Raise if work that there is could not end under the new limits."""
        board = self._board
        for pattern, spec in new.lanes.items():
            before = board.specs.lanes.get(pattern)
            if before is None and board.journal is not None:  # a question may be open for a lane that is not there now
                covering = (other for other in board.specs.lanes.values() if other.matches(pattern))
                before = max(covering, key=lambda other: len(other.pattern), default=None)
            if before is not None and before.handler is not None and spec.handler is None:
                raise InvalidLane(
                    f"lane {pattern!r}, handler: is missing, and accepted messages need it; allowed: a handler"
                )
        for one in board.live.values():
            # One that another run answers is on no lane, and comes back to it when that run is tried again.
            if one.phase is Phase.READ_BY_ANOTHER and new.find(one.run.lane).group != one.spec.group:
                raise InvalidLane(
                    f"lane {one.run.lane!r}, group: {new.find(one.run.lane).group!r} is not allowed while run "
                    f"{one.run.id} is answered by run {one.run.answered_by}; allowed: {one.spec.group!r}, until it has "
                    "ended"
                )
        for lane in board.lanes.values():
            spec = new.find(lane.name)
            if spec.group != lane.spec.group and not lane.idle:
                raise InvalidLane(
                    f"lane {lane.name!r}, group: {spec.group!r} is not allowed while {len(lane.running)} of its runs "
                    f"run and {len(lane.queued)} wait; allowed: {lane.spec.group!r}, until the lane is idle"
                )
            if spec.handler is None and lane.spec.handler is not None and not lane.idle:
                raise InvalidLane(
                    f"lane {lane.name!r}, handler: is missing in {spec.pattern!r}, and it has {len(lane.queued)} runs "
                    "that wait; allowed: a handler"
                )
        for name, pool in board.pools.items():
            limit, waits = new.pools[name].tokens, pool.largest()
            if limit is not None and waits is not None and waits.tokens > limit[0]:
                raise InvalidLane(
                    f"pool {name!r}, tokens: {limit[0]} are fewer than run {waits.waiter.run.id} waits for; allowed: "
                    f"{waits.tokens} or more, or until it has ended"
                )

    @_effects.change
    def _change(self, new: SpecTable, changes: tuple[str, ...]) -> None:
        board = self._board
        before = dict(board.specs.pools)
        board.specs.become(new)
        for name, spec in new.groups.items():
            group = board.groups.get(name)
            if group is None:
                board.groups[name] = Group(spec)
            else:
                group.spec = spec
        for lane in list(board.lanes.values()):
            lane.respec(new.find(lane.name))
            if lane.retires and lane.idle:
                del board.lanes[lane.name]
        for pool_name, pool_spec in new.pools.items():
            pool = board.pools.get(pool_name)
            if pool is None:
                board.pools[pool_name] = Pool(pool_spec)
            elif before[pool_name] != pool_spec:
                pool.respec(pool_spec)
                self._pools.look_again(pool)
        self.changes, self.changed_at = changes, _clock.clock.now()
        log("configured", changes=changes)
        for lane in board.lanes.values():
            board.groups[lane.spec.group].offer(lane)
        self._starting.admit_all()


def _changes(before: SpecTable, after: SpecTable) -> Iterator[str]:
    """What is different, a line each."""
    kinds = (
        ("lane", before.lanes, after.lanes),
        ("group", before.groups, after.groups),
        ("pool", before.pools, after.pools),
    )
    for kind, old, new in kinds:
        for name, spec in new.items():
            was = old.get(name)
            if was is None:
                yield f"{kind} {name}: is new"
            elif was is not spec:
                yield from _fields(f"{kind} {name}", was, spec)


def _fields(what: str, old: LaneSpec | GroupSpec | PoolSpec, new: LaneSpec | GroupSpec | PoolSpec) -> Iterator[str]:
    for field in fields(new):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if was is not now and was != now:
            yield f"{what}, {field.name}: {_shown(was)} → {_shown(now)}"


def _shown(value: object) -> str:
    """A value in a line of a log: a function by its name, which its address would hide."""
    return getattr(value, "__qualname__", None) or checks.shown(value)
