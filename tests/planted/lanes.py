"""Defects of `lanes`, each a patch of one function. A defect counts how often it was reached: one that never is shows
nothing."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from lanes import LaneSpec, RetrySpec, RunContext, RunState
from lanes.checks import Priority
from lanes.core import busy, causes, deadlock, execution, history, hooks, intake, outcomes, raised
from lanes.core.causes import Causes
from lanes.core.finish import Finishing
from lanes.core.phase import Phase
from lanes.core.pools import Pools
from lanes.core.steer import Steering
from lanes.queues import groups, pool, turns
from lanes.queues.allowance import Allowance
from lanes.queues.lane import Lane
from lanes.spec_table import SpecTable
from locks import Fence, _effects
from locks.lowlevel import Arbiter, FileClaim
from locks.rights.deadlock import WaitGraph
from locks.rights.hold_time import HoldTime
from runtime import statistics

reached: Counter[str] = Counter()


def turn_kept_on_abandonment() -> None:
    """An abandoned run stays at the front of its session."""
    leave = turns.Turns.leave

    def leave_unless_abandoned(
        self: turns.Turns[execution.Execution], file: str, one: execution.Execution
    ) -> execution.Execution | None:
        if one.run.state is RunState.ABANDONED:
            reached["turn_kept_on_abandonment"] += 1
            return None
        return leave(self, file, one)

    turns.Turns.leave = leave_unless_abandoned  # type: ignore[assignment, method-assign]


def grace_ignored() -> None:
    """Abandons a run as soon as it is asked to end."""
    init = execution.Execution.__init__

    def without_grace(self: execution.Execution, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        reached["grace_ignored"] += 1
        self.spec = dataclasses.replace(self.spec, grace=0.0)

    execution.Execution.__init__ = without_grace  # type: ignore[method-assign]


def slot_lost_on_error() -> None:
    """A body that raises takes its slot along."""
    give_back = groups.Group.give_back

    def unless_failed(self: groups.Group[execution.Execution], one: execution.Execution) -> None:
        if one.run.outcome is not None and one.run.outcome.state is RunState.FAILED:
            reached["slot_lost_on_error"] += 1
            return
        give_back(self, one)

    groups.Group.give_back = unless_failed  # type: ignore[assignment, method-assign]


def fence_left_open() -> None:
    """The end of a run does not keep it from writing."""

    def close(self: Fence, *args: Any) -> None:
        reached["fence_left_open"] += 1

    Fence.close = close  # type: ignore[assignment, method-assign]


def order_by_chance() -> None:
    """Whoever came last to a session goes next."""
    leave = turns.Turns.leave

    def leave_to_the_last(
        self: turns.Turns[execution.Execution], file: str, one: execution.Execution
    ) -> execution.Execution | None:
        queue = self._by_file[file].order
        if len(queue) > 2 and next(iter(queue)) is one:
            reached["order_by_chance"] += 1
            queue.move_to_end(next(reversed(queue)), last=False)
            queue.move_to_end(one, last=False)
        return leave(self, file, one)

    turns.Turns.leave = leave_to_the_last  # type: ignore[assignment, method-assign]


def limit_off_by_one() -> None:
    """`>` for `>=`: a queue takes one more than its limit."""
    find = SpecTable.find

    def find_with_more(self: SpecTable, name: str) -> LaneSpec:
        reached["limit_off_by_one"] += 1
        found = find(self, name)
        return found if found.queue_limit is None else dataclasses.replace(found, queue_limit=found.queue_limit + 1)

    SpecTable.find = find_with_more  # type: ignore[method-assign]


def reserve_ignored() -> None:
    """Gives the reserved slots to anyone."""

    def has_slot(self: groups.Group[execution.Execution], urgency: Priority) -> bool:
        reached["reserve_ignored"] += 1
        return self.running < self.spec.slots

    groups.Group.has_slot = has_slot  # type: ignore[assignment, method-assign]


def age_ignored() -> None:
    """The most urgent always goes first, however long others have waited."""
    reached["age_ignored"] += 1
    for urgency in Priority:
        groups.HANDICAP_S[urgency] = 1e6 * urgency


def budget_from_submit() -> None:
    """The time in the queue counts as time that the run has taken."""
    begin = execution.Execution.begin

    def begin_late(self: execution.Execution) -> None:
        reached["budget_from_submit"] += 1
        begin(self)
        self.hard_deadline = self.run.deadline = self.run.enqueued_at + self.timeout

    execution.Execution.begin = begin_late  # type: ignore[method-assign]


def progress_without_end() -> None:
    """`progress()` moves the hard deadline, too."""
    progress = execution.Execution.progress

    def progress_on(self: execution.Execution) -> None:
        reached["progress_without_end"] += 1
        self.hard_deadline += 10.0
        progress(self)

    execution.Execution.progress = progress_on  # type: ignore[method-assign]


def told_for_ever() -> None:
    """An abandoned body is cancelled over and over."""

    def tell(self: execution.Execution) -> None:
        reached["told_for_ever"] += 1

    execution.Execution.shield_body = tell  # type: ignore[method-assign]


def frames_kept() -> None:
    """A run's error keeps the frames of its body."""

    def scrub(error: BaseException) -> str:
        reached["frames_kept"] += 1
        return "in body: no such tool"

    raised.scrub = scrub  # type: ignore[attr-defined]


def logged_twice() -> None:
    """A timed-out run is logged again when it has ended."""
    log_timeout = outcomes.log_timeout

    def log_again(execution: execution.Execution, reason: str) -> None:
        reached["logged_twice"] += 1
        log_timeout(execution, reason)
        log_timeout(execution, reason)

    causes.log_timeout = log_again  # type: ignore[attr-defined]


def never_retired() -> None:
    """A lane stays when it is idle."""

    def idle(self: Lane[execution.Execution]) -> bool:
        reached["never_retired"] += 1
        return False

    Lane.idle = property(idle)  # type: ignore[assignment, method-assign]


def routes_ignored() -> None:
    """Messages of different routes are answered together."""

    def same(one: Any, other: Any) -> bool:
        reached["routes_ignored"] += 1
        return True

    busy.same_route = same  # type: ignore[attr-defined]


def nobody_superseded() -> None:
    """An interrupting message leaves the run that is under way alone."""

    def supersede(self: Causes, *args: Any) -> None:
        reached["nobody_superseded"] += 1

    Causes.supersede = supersede  # type: ignore[assignment, method-assign]


def unread_forgotten() -> None:
    """What a body leaves unread in its inbox goes with it."""

    def queue_unread(self: Steering, one: execution.Execution) -> None:
        reached["unread_forgotten"] += len(one.unread())

    Steering.queue_unread = queue_unread  # type: ignore[assignment, method-assign]


def reader_keeps_the_outcome() -> None:
    """Whose message was read is told that all is well, whatever became of the reader."""
    finish = Finishing.finish

    def finish_well(self: Finishing, one: execution.Execution, state: RunState, reason: str, **more: Any) -> None:
        if one.steered_into is not None and one.steered_into.over:
            reached["reader_keeps_the_outcome"] += 1
            state, reason, more = RunState.DONE, "", {}
        finish(self, one, state, reason, **more)

    Finishing.finish = finish_well  # type: ignore[assignment, method-assign]


def drop_untold() -> None:
    """Whose message is dropped from a full queue waits on."""
    end = Causes.end

    def end_the_told(self: Causes, one: execution.Execution, state: RunState, reason: str) -> bool:
        if reason.startswith("dropped"):
            reached["drop_untold"] += 1
            one.lane.forget(one)
            return True
        return end(self, one, state, reason)

    Causes.end = end_the_told  # type: ignore[assignment, method-assign]


def one_attempt_too_many() -> None:
    """`<=` for `<`: a body is called once more than its lane allows."""
    next_attempt = execution.Execution.next_attempt

    def uncounted(self: execution.Execution, fence: Fence) -> execution.Execution:
        again = next_attempt(self, fence)
        if not reached["one_attempt_too_many"]:
            again.run.attempt -= 1
        reached["one_attempt_too_many"] += 1
        return again

    execution.Execution.next_attempt = uncounted  # type: ignore[method-assign]


def no_wait_between() -> None:
    """A failing body is called again at once."""

    def wait_after(self: RetrySpec, attempt: int) -> float:
        reached["no_wait_between"] += 1
        return 0.0

    RetrySpec.wait_after = wait_after  # type: ignore[method-assign]


def reset_bars_nobody() -> None:
    """A run from before a reset may write to the new session."""

    def bar(self: Fence, *args: Any) -> None:
        reached["reset_bars_nobody"] += 1

    Fence.bar = bar  # type: ignore[assignment, method-assign]


def children_left_alone() -> None:
    """The end of a run is not the end of its children."""

    def leave(self: execution.Execution, why: str) -> None:
        reached["children_left_alone"] += 1

    execution.Execution.ask_children_to_end = leave  # type: ignore[method-assign]


def slot_not_lent() -> None:
    """A run that waits for another one keeps its slot."""

    async def wait(self: deadlock.Waits, asking: Any, run: Any, ended: Any) -> None:
        reached["slot_not_lent"] += 1
        await ended.wait()

    deadlock.Waits.wait = wait  # type: ignore[method-assign]


def ring_unseen() -> None:
    """A wait that can never end begins."""

    def stuck(self: deadlock.Waits, asking: Any) -> None:
        reached["ring_unseen"] += 1

    deadlock.Waits._stuck = stuck  # type: ignore[method-assign]


def key_forgotten() -> None:
    """The same message again is another message."""

    def known(self: history.History, *args: Any) -> None:
        reached["key_forgotten"] += 1

    history.History.known = known  # type: ignore[assignment, method-assign]


def minute_starts_afresh() -> None:
    """A rate is counted in minutes of its own, so twice as many begin around the change of one."""

    def begun(self: Allowance, now: float) -> int:
        reached["minute_starts_afresh"] += 1
        assert self.spec.rate is not None
        per_s = self.spec.rate[1]
        while self._begun and self._begun[0] // per_s < now // per_s:
            self._begun.popleft()
        return len(self._begun)

    Allowance.begun = begun  # type: ignore[method-assign]


def grant_outlives_its_run() -> None:
    """The end of a run leaves what it holds of a pool."""

    def end_all(self: Pools, one: execution.Execution) -> None:
        reached["grant_outlives_its_run"] += 1

    Pools.end_all = end_all  # type: ignore[assignment, method-assign]


def hog_keeps_the_pool() -> None:
    """The session at the front of a pool stays there as long as it has calls."""

    def take(self: Any) -> Any:
        reached["hog_keeps_the_pool"] += 1
        claim = self.front()
        self.leave(claim)
        return claim

    pool._Line.take = take  # type: ignore[method-assign]


def extended_without_its_turn() -> None:
    """A run that moves its deadline loses its session at the old one."""

    def follow_run(self: HoldTime) -> None:
        reached["extended_without_its_turn"] += 1

    HoldTime.follow_run = follow_run  # type: ignore[method-assign]


def quiet_without_end() -> None:
    """A stream of messages without a pause is never answered."""
    reached["quiet_without_end"] += 1
    intake.DEBOUNCE_AT_MOST = 10**9


def hook_uncontained() -> None:
    """What a hook raises comes out where it was called."""

    def call(self: hooks.Hooks, hook: Callable[..., Any], *args: Any) -> Any:
        reached["hook_uncontained"] += 1
        return hook(*args)

    hooks.Hooks._call = call  # type: ignore[assignment, method-assign]


def effects_at_once() -> None:
    """Hooks and log lines run in the middle of the change that sets them off."""

    def after(call: Callable[..., object], *args: Any) -> None:
        reached["effects_at_once"] += 1
        call(*args)

    _effects.after = after


def released_at_once() -> None:
    """The last references to users' objects go in the middle of a change."""

    def release(*kept: Any) -> None:
        reached["released_at_once"] += 1

    _effects.release = release


def always_healthy() -> None:
    """However many bodies are abandoned, all is well."""

    def none(*args: Any) -> tuple[str, ...]:
        reached["always_healthy"] += 1
        return ()

    statistics.problems = none  # type: ignore[assignment]


def late_events_heard() -> None:
    """What a dead attempt emits reaches who reads along."""

    def emit(self: RunContext, event: Any) -> None:
        reached["late_events_heard"] += 1
        self.run._emit(event)

    RunContext.emit = emit  # type: ignore[method-assign]


def priority_not_lent() -> None:
    """Who has a session's turn stays what it is, whoever waits for it."""

    def most_urgent(self: turns.Turns[execution.Execution], file: str) -> Priority:
        reached["priority_not_lent"] += 1
        front = self.front(file)
        assert front is not None
        return front.given_urgency

    turns.Turns.most_urgent = most_urgent  # type: ignore[assignment, method-assign]


def deadline_not_inherited() -> None:
    """A child may run on behind its parent's deadline."""
    begin = execution.Execution.begin

    def begin_alone(self: execution.Execution) -> None:
        parent, self.parent = self.parent, None
        reached["deadline_not_inherited"] += parent is not None
        begin(self)
        self.parent = parent

    execution.Execution.begin = begin_alone  # type: ignore[method-assign]


def parents_turn_allowed() -> None:
    """A child may wait for the turn that its parent has."""

    def allow(*args: Any) -> None:
        reached["parents_turn_allowed"] += 1

    intake._refuse_inherited_turn = allow  # type: ignore[assignment]


def shares_ignored() -> None:
    """Of the classes that are due, the most urgent one gets every slot."""
    reached["shares_ignored"] += 1
    for urgency in Priority:
        groups.STRIDE[urgency] = 10**6 * int(urgency)


def cut_short_still_waits() -> None:
    """A run that goes on without its slot is still taken to wait for it."""

    def waits_no_more(self: groups.Group[execution.Execution], one: execution.Execution) -> None:
        reached["cut_short_still_waits"] += 1

    groups.Group.waits_no_more = waits_no_more  # type: ignore[assignment, method-assign]


def limits_unseen() -> None:
    """A wait for a lease with a `wait_timeout` counts as one without."""
    begin = WaitGraph.begin

    def begin_without(self: WaitGraph, task: object, claim: FileClaim, limit: float = math.inf) -> None:
        reached["limits_unseen"] += limit < math.inf
        begin(self, task, claim)

    WaitGraph.begin = begin_without  # type: ignore[method-assign]


def taken_turn_unseen() -> None:
    """A queued run is taken to start though another supervisor has its session's turn."""

    def keepers(self: Arbiter, *args: Any) -> Iterator[object]:
        reached["taken_turn_unseen"] += 1
        return iter(())

    Arbiter.keepers = keepers  # type: ignore[assignment, method-assign]


def lane_order_ignored() -> None:
    """An urgent run is taken to overtake on its lane."""

    def least_urgent_before(self: Lane[execution.Execution], rank: int) -> Priority:
        reached["lane_order_ignored"] += 1
        return Priority.FOREGROUND

    Lane.least_urgent_before = least_urgent_before  # type: ignore[assignment, method-assign]


def lent_class_ignored() -> None:
    """Whether a queued run finds a slot is judged by the class that it was submitted with."""
    place = turns.Turns.place

    def place_as_submitted(
        self: turns.Turns[execution.Execution], file: str, one: execution.Execution
    ) -> tuple[execution.Execution | None, Priority]:
        reached["lent_class_ignored"] += 1
        return place(self, file, one)[0], one.given_urgency

    turns.Turns.place = place_as_submitted  # type: ignore[assignment, method-assign]


def slot_back_unnoted() -> None:
    """A run that has its slot again stays in the phase in which it wants one."""

    def has_slot_again(self: execution.Execution) -> None:
        reached["slot_back_unnoted"] += 1

    execution.Execution.has_slot_again = has_slot_again  # type: ignore[method-assign]


def ended_while_its_body_runs() -> None:
    """An abandoned run is taken to have ended like any other."""
    move = execution.Execution.move

    def end(self: execution.Execution, to: Phase) -> None:
        abandoned = to is Phase.ABANDONED
        reached["ended_while_its_body_runs"] += abandoned
        move(self, Phase.ENDED if abandoned else to)

    execution.Execution.move = end  # type: ignore[method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    defect.__name__: defect
    for defect in (
        turn_kept_on_abandonment,
        grace_ignored,
        slot_lost_on_error,
        fence_left_open,
        order_by_chance,
        limit_off_by_one,
        reserve_ignored,
        age_ignored,
        budget_from_submit,
        progress_without_end,
        told_for_ever,
        frames_kept,
        logged_twice,
        never_retired,
        routes_ignored,
        nobody_superseded,
        unread_forgotten,
        reader_keeps_the_outcome,
        drop_untold,
        one_attempt_too_many,
        no_wait_between,
        reset_bars_nobody,
        children_left_alone,
        slot_not_lent,
        ring_unseen,
        key_forgotten,
        minute_starts_afresh,
        grant_outlives_its_run,
        hog_keeps_the_pool,
        extended_without_its_turn,
        quiet_without_end,
        hook_uncontained,
        effects_at_once,
        released_at_once,
        always_healthy,
        late_events_heard,
        priority_not_lent,
        deadline_not_inherited,
        parents_turn_allowed,
        shares_ignored,
        cut_short_still_waits,
        limits_unseen,
        taken_turn_unseen,
        lane_order_ignored,
        lent_class_ignored,
        slot_back_unnoted,
        ended_while_its_body_runs,
    )
}
