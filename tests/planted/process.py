"""Defects of the process around the lanes: its watchdog, its restart, its limits. Each is a patch of one function and
counts how often it was reached: one that never is shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from lanes import RunState
from lanes.core import causes
from lanes.core.causes import Causes
from lanes.core.execution import Execution
from lanes.queues.throttle import Throttle
from locks import Fence
from runtime import restart as restarts
from runtime.drain import Drain, DrainReport
from runtime.phase import Phase
from runtime.restart import Restarts
from runtime.watch import watchdog
from runtime.watch.limits import Keeper
from runtime.watch.selfcheck import SelfCheck
from runtime.watch.watchdog import Watchdog
from runtime.zombies import Exits

reached: Counter[str] = Counter()


def nothing(defect: str, returns: Any = None) -> Callable[..., Any]:
    """A function that does nothing but count."""

    def does_nothing(*args: Any, **options: Any) -> Any:
        reached[defect] += 1
        return returns

    return does_nothing


def watchdog_silent() -> None:
    """Sees that the loop does not answer, and says nothing."""
    Watchdog._examine = nothing("watchdog_silent")  # type: ignore[method-assign]


def culprit_unknown() -> None:
    """Says where the loop is blocked, but not by which run."""
    watchdog.run_of = nothing("culprit_unknown")  # type: ignore[attr-defined]  # where it is used


def exit_limit_ignored() -> None:
    """What overruns its bounds goes on for ever."""
    Watchdog.exit_by = nothing("exit_limit_ignored")  # type: ignore[method-assign]


def last_resort_left_armed() -> None:
    """A supervisor that has stopped ends the process a minute later."""

    def stop(self: Watchdog) -> None:
        reached["last_resort_left_armed"] += 1
        self._running, self._alarm, self._ping = False, None, None

    Watchdog.stop = stop  # type: ignore[method-assign]


def fed_always() -> None:
    """The service manager hears that all is well whatever is wrong."""

    def seen(self: Watchdog) -> list[str]:
        reached["fed_always"] += 1
        return []

    Watchdog.problems = property(seen, lambda self, found: None)  # type: ignore[assignment]


def standing_still_counts() -> None:
    """Time in which the process was stopped counts as a blocked loop."""
    watchdog._why_all_are_late = nothing("standing_still_counts", watchdog._HELD)


def looks_pile_up() -> None:
    """Each second of a blocked loop is one more look as soon as it goes on."""

    def never(self: Watchdog) -> bool:
        reached["looks_pile_up"] += 1
        return False

    Watchdog._looking = property(never, lambda self, value: None)  # type: ignore[assignment]


def selfcheck_blind() -> None:
    """A recovery that frees nothing is a success."""
    SelfCheck.look = nothing("selfcheck_blind", [])  # type: ignore[method-assign]


def limits_only_slow() -> None:
    """However long a limit is passed, nobody restarts."""
    passed = Keeper._passed

    def without_restart(self: Keeper, now: float, why: str) -> None:
        reached["limits_only_slow"] += 1
        self.limits = replace(self.limits, restart_after_s=None)
        passed(self, now, why)

    Keeper._passed = without_restart  # type: ignore[method-assign]


def late_reason_empty() -> None:
    """A deadline that fired late does not say so."""
    causes.late_reason = nothing("late_reason_empty", "")  # type: ignore[attr-defined]  # where it is used


def grace_not_given_again() -> None:
    """A body that had no chance to end is abandoned by the first timer that comes."""
    Causes._more_grace = nothing("grace_not_given_again", 0.0)  # type: ignore[method-assign]


def grace_given_for_ever() -> None:
    """Each time that the loop comes late, a body gets its grace once more."""
    more_grace = Causes._more_grace

    def again(self: Causes, execution: Execution, due: float) -> float:
        reached["grace_given_for_ever"] += 1
        execution.grace_extended = False
        return more_grace(self, execution, due)

    Causes._more_grace = again  # type: ignore[method-assign]


def fence_not_forgiven() -> None:
    """A process that was stopped finds its permission to write gone."""
    Fence.restart_grace = nothing("fence_not_forgiven")  # type: ignore[method-assign]


def fence_forgiven_twice() -> None:
    """Each time that a grace starts afresh, it is longer."""

    def restart_grace(self: Fence, now: float) -> None:
        reached["fence_forgiven_twice"] += 1
        if self.deadline <= now and not self._closed:
            self.end_at = max(self.end_at, now + self.end_at - self.deadline)

    Fence.restart_grace = restart_grace  # type: ignore[method-assign]


def ramp_ignored() -> None:
    """Everything that is overdue starts at once."""
    Throttle.ramp = nothing("ramp_ignored")  # type: ignore[method-assign]


def not_reopened() -> None:
    """The drain flag stays set."""
    Restarts._reopen = nothing("not_reopened", False)  # type: ignore[method-assign]


def reopened_by_a_stop() -> None:
    """A restart that a stop gives up opens admission again."""
    reopen = Restarts._reopen

    def always(self: Restarts) -> bool:
        if not self._standing.is_in(Phase.STOPPING):
            return reopen(self)
        reached["reopened_by_a_stop"] += 1
        self._standing.move(Phase.RUNNING)
        self._scheduler.open()
        return True

    Restarts._reopen = always  # type: ignore[method-assign]


def services_not_left() -> None:
    """The next generation begins beside the old one."""

    async def change(self: Restarts) -> None:
        reached["services_not_left"] += 1
        old = self._standing.services
        self._standing.services = fresh = old.again()
        await fresh.enter(old.name, self._standing.services_timeout)
        self._scheduler.board.services = fresh.made

    Restarts._change_services = change  # type: ignore[method-assign]


def services_not_made_anew() -> None:
    """The next generation works with what the old one has left."""

    async def change(self: Restarts) -> None:
        reached["services_not_made_anew"] += 1

    Restarts._change_services = change  # type: ignore[method-assign]


def generation_not_counted() -> None:
    """Each generation is the first one."""
    change = Restarts._change_services

    async def change_back(self: Restarts) -> None:
        reached["generation_not_counted"] += 1
        await change(self)
        self._standing.generation -= 1

    Restarts._change_services = change_back  # type: ignore[method-assign]


def queue_dropped() -> None:
    """Queued work ends with the generation in which it came."""
    cancel_rest = Drain.cancel_rest

    async def cancel_all(self: Drain, reason: str) -> None:
        await cancel_rest(self, reason)
        for execution in list(self._scheduler.board.live.values()):
            reached["queue_dropped"] += 1
            execution.ask_to_end(RunState.CANCELLED, reason)

    Drain.cancel_rest = cancel_all  # type: ignore[method-assign]


def zombies_taken_along() -> None:
    """The next generation begins while bodies of the old one still run."""
    report = Drain.report

    def without_zombies(self: Drain) -> DrainReport:
        reached["zombies_taken_along"] += 1
        return replace(report(self), abandoned=())

    Drain.report = without_zombies  # type: ignore[method-assign]


def zombies_kept() -> None:
    """A process that was told to leave with its zombies stays."""
    Exits.for_runs = nothing("zombies_kept")  # type: ignore[method-assign]


def stop_does_not_cancel_a_restart() -> None:
    """A stop waits until the restart is through."""

    async def wait(self: Restarts) -> None:
        if self._over is not None:
            reached["stop_does_not_cancel_a_restart"] += 1
            await self._over.wait()

    Restarts.give_up = wait  # type: ignore[method-assign]


def cancelled_at_once() -> None:
    """A restart that is cancelled takes the running runs along."""
    let_finish = Drain.let_finish

    async def or_cancel(self: Drain, timeout: float) -> bool:
        try:
            return await let_finish(self, timeout)
        except BaseException:
            reached["cancelled_at_once"] += 1
            await self.cancel_rest("the supervisor restarts")
            raise

    Drain.let_finish = or_cancel  # type: ignore[method-assign]


def step_interrupted() -> None:
    """A cancellation of asyncio's own comes through in the middle of a step that cannot be taken back."""

    async def directly(body: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        reached["step_interrupted"] += 1
        await body()

    restarts.to_its_end = directly  # type: ignore[attr-defined]  # where it is used


def restarts_before_it_started() -> None:
    """Services are left while they are being entered."""

    def always(self: Restarts) -> bool:
        reached["restarts_before_it_started"] += 1
        return not self.under_way and self._standing.is_in(Phase.STARTING, Phase.RUNNING, Phase.DRAINING)

    Restarts._may_begin = always  # type: ignore[method-assign]


DEFECTS: dict[str, Callable[[], None]] = {
    defect.__name__: defect
    for defect in (
        watchdog_silent,
        culprit_unknown,
        exit_limit_ignored,
        last_resort_left_armed,
        fed_always,
        standing_still_counts,
        looks_pile_up,
        selfcheck_blind,
        limits_only_slow,
        late_reason_empty,
        grace_not_given_again,
        grace_given_for_ever,
        fence_not_forgiven,
        fence_forgiven_twice,
        ramp_ignored,
        not_reopened,
        reopened_by_a_stop,
        services_not_left,
        services_not_made_anew,
        generation_not_counted,
        queue_dropped,
        zombies_taken_along,
        zombies_kept,
        stop_does_not_cancel_a_restart,
        cancelled_at_once,
        step_interrupted,
        restarts_before_it_started,
    )
}
