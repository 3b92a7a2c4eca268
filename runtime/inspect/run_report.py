"""Where a run stands, for people: `lanes stack RUN`.

A queued run: everything that it waits for, and who has that. A running one: its tasks as a tree, each coroutine by
coroutine down to the line that waits; its worker threads; its processes; what it holds in the lock registry; the runs
that it waits for or has submitted, and where those stand.

Rejected: `stackscope`, which walks the same chain of coroutines and names the open context managers as well. Its last
release is of February 2024; it knows nothing of asyncio's tasks, so children and threads would be ours to find all the
same; and it reads the interpreter's own frames, by a module for each generation of Python. What is needed is short
(`lanes/body/stacks.py`, `runtime/inspect/tasks.py`), over attributes that Python, asyncio, anyio and trio have anyway.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from linecache import getline

from lanes import Run, RunState
from lanes.body.stacks import coroutine_of, is_running, places_of, steps, variables
from lanes.core.body_task import conduct
from lanes.core.execution import Execution, execution_of
from lanes.core.needs import Kind, Need, needs_of
from lanes.core.scheduler import Scheduler
from locks import _clock
from locks._events import described
from locks.sidecar import turn_note

from ..watch.frames import name_of, place_of, run_of, source_of, stack_text
from .tasks import Kin, Task, all_tasks, grow, kin_of, running_tasks

_MOST_TASKS = 100
_MOST_ASKED = 2000
"""With more tasks on the loop, it is not found out for a one-line answer whose child each of them is."""
_MOST_OTHERS = 20
"""Threads, runs and rights that are told, each."""
_MOST_NAMED = 3
"""Runs that are named where any one of them would have to end."""
_OUTERMOST = 3
"""Calls among which that of the body's own task is; the event library has the others."""
_CONDUCT = conduct.__code__


def report_on(run: Run) -> str:
    """Where a run stands now, as text of some lines. On the event loop's thread; it takes and changes nothing.

    Bounded: 30 frames of each task, 100 tasks, 20 of everything else; it says how many it has left out. Keeps nothing
    alive, and never raises: what cannot be looked at is named.
    """
    present = execution_of(run)
    execution = present or _abandoned(run)
    lines = _head(run, present)
    of_attempt = (_waits, _tasks, _processes, _rights, _runs) if execution is not None else ()
    for section in (partial(_ended, run), *of_attempt, partial(_threads, run)):
        try:
            lines += section(execution)
        except Exception as error:
            # An object of the user's, or one that has ended in between: an operator needs the rest all the more.
            lines.append(f"(something could not be looked at: {described(error)})")
    return "\n".join(lines)


def _head(run: Run, execution: Execution | None) -> list[str]:
    """The run, since when it runs or waits, and until when."""
    session = "" if run.session is None else f", session {run.session}" + ("" if run.turn else " (appends only)")
    who = name_of(run) if execution is None else str(execution.fence.holder)
    parts = [state_of(run), f"attempt {run.attempt}"]
    if execution is not None:
        parts += _limits(run, execution)
        if run.reason:
            parts.append(f"asked to end: {run.reason}" if execution.ending else run.reason)
    return [f"{who}{session}", f"  {'; '.join(parts)}"]


def _limits(run: Run, execution: Execution) -> Iterator[str]:
    now = _clock.clock.now()
    if run.started_at is not None:
        yield f"waited {run.started_at - run.enqueued_at - execution.ran_before_s:.1f} s before"
    if execution.ending:
        left = execution.fence.end_at - now
        yield f"its grace ends in {left:.1f} s" if left >= 0 else f"its grace has ended {-left:.1f} s ago"
    elif run.deadline is not None:
        left = run.deadline - now
        yield f"deadline in {left:.1f} s" if left >= 0 else f"its deadline has passed {-left:.1f} s ago"
    elif run.wait_deadline is not None:
        left = run.wait_deadline - now
        yield f"gives up waiting in {left:.1f} s" if left >= 0 else f"should have given up waiting {-left:.1f} s ago"


def state_of(run: Run) -> str:
    """Its state, since when: `running for 12.3 s`."""
    now, outcome = _clock.clock.now(), run.outcome
    if outcome is not None:
        ran = f"ran {outcome.ran_s:.1f} s, waited {outcome.waited_s:.1f} s"
        return f"{run.state}: {outcome.reason} ({ran})" if outcome.reason else f"{run.state} ({ran})"
    if run.state is RunState.RUNNING and run.started_at is not None:
        return f"running for {now - run.started_at:.1f} s"
    return f"{run.state}, submitted {now - run.enqueued_at:.1f} s ago"


def _brief(execution: Execution) -> str:
    """A run on one line: its name, since when, and the line that it waits at."""
    guilty = places_of(coroutine_of(execution.fence.task), unseen=__name__).guilty
    return f"{name_of(execution.run)} ({state_of(execution.run)}{f', at {guilty}' if guilty else ''})"


def _briefs(executions: list[Execution]) -> str:
    more = len(executions) - _MOST_NAMED
    told = "; ".join(map(_brief, executions[:_MOST_NAMED]))
    return f"{told}; and {more} more" if more > 0 else told


def _left_out(number: int, what: str) -> list[str]:
    return [f"  … {number} more {what} …"] if number > 0 else []


# What is over, or has not begun


def _ended(run: Run, execution: Execution | None) -> list[str]:
    if run.outcome is None:
        return [] if execution is not None else ["  nothing conducts it any more: its supervisor has stopped"]
    lines = []
    if execution is not None:
        since, stack = _scheduler(execution).board.abandoned[execution]
        lines.append(
            f"  its body still runs, abandoned {_clock.clock.now() - since:.1f} s ago; fenced: it cannot write"
        )
        lines += ["where it stood then:", stack, "where it stands now:"]
    if run.outcome.traceback:
        lines.append(run.outcome.traceback.rstrip())
    return lines


def _abandoned(run: Run) -> Execution | None:
    """The attempt whose body goes on though its run has ended: only its task knows it still."""
    if run.state is not RunState.ABANDONED:
        return None
    for info in running_tasks():
        for step in islice(steps(info.coro), _OUTERMOST):
            if getattr(step, "cr_code", None) is _CONDUCT:
                found = [one for one in variables(step) if isinstance(one, Execution) and one.run is run]
                if found and found[0] in _scheduler(found[0]).board.abandoned:
                    return found[0]
    return None


def _waits(execution: Execution) -> list[str]:
    if execution.steered_into is not None and not execution.is_queued() and not execution.over:
        return [f"its message was read by {_brief(execution.steered_into)}; they share an outcome"]
    return [f"waits for {what}" for what in _needs(execution)]


def _needs(execution: Execution) -> list[str]:
    """All that a run needs before it can go on, or can start, in words."""
    # Two needs of slots read alike; what it waits for in the lock registry is named with its rights.
    words = dict.fromkeys(filter(None, (_words(need, execution) for need in needs_of(execution))))
    starts = execution.is_queued() and not words
    return ["nothing: it starts when the event loop comes to it"] if starts else list(words)


def _words(need: Need, one: Execution) -> str:
    run, lane = one.run, one.lane
    match need.kind:
        case Kind.READER:
            return f"{_briefs(need.runs)} to read its message from its inbox"
        case Kind.RUN:
            return _briefs(need.runs)
        case Kind.ADMISSION:
            return "admission: the supervisor is not started yet, or drains, and starts nothing"
        case Kind.INSTANT:
            what = f"its attempt {run.attempt}" if run.attempt > 1 else "quiet (debounce), for its sender may say more:"
            return f"{what} in {one.held_until - _clock.clock.now():.1f} s"
        case Kind.TURN | Kind.HELD:
            return f"its turn of session {run.session}{_before(need, one)}"
        case Kind.PLACE if one.file is None or need.runs != [
            one.owner.board.turns.front(one.file)
        ]:  # named with the turn
            places = f"{len(need.runs)} of {lane.spec.capacity} taken"
            return f"a place on lane {lane.name}: {places}, by {_briefs(need.runs)}"
        case Kind.SLOT:
            return f"a slot{'' if one.is_queued() else ' again'}: {_slots(one)}"
        case Kind.POOL:
            return _pool(one)
        case Kind.THROTTLE:
            return f"admission, which is slowed: {one.owner.board.throttle.reason}"
    return ""


def _before(need: Need, one: Execution) -> str:
    """What goes before it in its session."""
    assert one.file is not None
    if need.kind is Kind.TURN:
        order = list(one.owner.board.turns.of(one.file))
        return f": {order.index(one)} before it, first {_brief(order[0])}"
    if need.any_of:
        return ", which a task of this process has"
    named = turn_note.read(one.file)
    if named is None or named.pid is None:
        return ", which another process has"
    who = f"run {named.run_id} on lane {named.lane}, " if named.run_id is not None else ""
    return f", which another process has: {who}pid {named.pid}"


def _slots(execution: Execution) -> str:
    group = execution.owner.board.groups[execution.spec.group]
    reserve = f", {group.spec.reserve} reserved for foreground" if group.spec.reserve else ""
    slots = f"{group.running} of {group.spec.slots} of group {group.spec.name} taken{reserve}"
    return f"{slots}, by {_briefs(list(group.holders))}" if group.holders else slots


def _pool(execution: Execution) -> str:
    claim = execution.wait.claim if execution.wait is not None else None
    if claim is None:
        return ""
    pool, holders = claim.pool, list(dict.fromkeys(one.waiter for one in claim.pool.held))
    held = f", held by {_briefs(holders)}" if holders else ""
    return f"a grant of pool {pool.spec.name}: {pool.reason(claim, _clock.clock.now())}{held}"


def _scheduler(execution: Execution) -> Scheduler:
    assert isinstance(execution.owner, Scheduler)
    return execution.owner


# Its tasks


def _tasks(execution: Execution) -> list[str]:
    run = execution.run
    if not execution.began:
        begins = run.state is RunState.RUNNING and execution.steered_into is None
        return ["its body has not begun: the event loop has not come to it yet"] if begins else []
    tasks = all_tasks()
    root = tasks.get(id(execution.fence.task))
    if root is None:
        return ["its task has ended, or belongs to another event loop"]
    strays = grow(run, root, tasks, kin_of(tasks))
    lines: list[str] = []
    told = [(root, 0, "task"), *((task, 0, "task that none of its tasks awaits:") for task in strays)][::-1]
    number = 0
    while told:
        task, depth, what = told.pop()
        number += 1
        if number <= _MOST_TASKS:
            lines += _task_lines(task, depth, what)
        told += [(child, depth + 1, "child task") for child in reversed(task.children)]
    return lines + _left_out(number - _MOST_TASKS, "tasks")


def _task_lines(task: Task, depth: int, what: str) -> list[str]:
    places = places_of(task.coro, unseen=__name__)
    now = "runs right now" if is_running(task.coro) else "waits"
    at = f" at {places.guilty}" if places.guilty else ""
    text = f"{what} {task.name} {now}{at}\n{places.inner().as_traceback()}"
    return ["    " * depth + line for line in text.splitlines()]


def guilty_lines(executions: Iterable[Execution]) -> dict[Execution, str]:
    """The one line that each of some running bodies waits at: in its worker thread, else in its innermost child task.

    Short, with its source: `tool.py:12 in crunch: await fetch()`. On the event loop's thread. Never raises.
    """
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # for the reason of `_threads`
    in_threads = {run: source_of(frame) for frame in frames.values() if (run := run_of(frame)) is not None}
    tasks = all_tasks()
    kin = kin_of(tasks if len(tasks) <= _MOST_ASKED else {})
    return {one: in_threads.get(one.run) or _line_of_tasks(one, tasks, kin) for one in executions}


def _line_of_tasks(execution: Execution, tasks: dict[int, Task], kin: Kin) -> str:
    task = tasks.get(id(execution.fence.task))
    if task is None:
        return ""
    grow(execution.run, task, tasks, kin)
    place = places_of(task.coro, unseen=__name__).guilty
    while task.children:
        task = task.children[0]
        place = places_of(task.coro, unseen=__name__).guilty or place
    if place is None:
        return ""
    source = getline(place.file, place.line).strip()
    return f"{place}: {source}" if source else f"{place}"


# What else it has


def _threads(run: Run, _: Execution | None) -> list[str]:
    lines: list[str] = []
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    number = 0
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # this call's own: a variable that named it would need the garbage collector
    for ident, frame in frames.items():
        if run_of(frame) is not run:
            continue
        number += 1
        if number <= _MOST_OTHERS:
            lines += [f"thread {names.get(ident, ident)} at {place_of(frame)}", *stack_text(frame).splitlines()]
    return lines + _left_out(number - _MOST_OTHERS, "threads")


def _processes(execution: Execution) -> list[str]:
    killers: list[Callable[[], None]] = list(execution.killers or ())
    lines = []
    for kill in killers[:_MOST_OTHERS]:
        popen = getattr(getattr(kill, "__self__", None), "_popen", None)
        lines.append("process that is being started" if popen is None else f"process {popen.pid}: {popen.args!r:.200}")
    return lines + _left_out(len(killers) - _MOST_OTHERS, "processes")


def _rights(execution: Execution) -> list[str]:
    """What it holds in the lock registry, and what it waits for there."""
    holder, now = execution.fence.holder, execution.owner.board.registry.statistics()
    lines = []
    for held in now.holders:
        if held.holder == holder:
            until = "without a limit" if held.remaining_s is None else f"for at most {held.remaining_s:.1f} s more"
            waiting = f"{held.waiting} wait for it"
            lines.append(f"holds {held.right} of {held.path} for {held.held_s:.1f} s, {until}; {waiting}")
    for one in now.waiters:
        if one.holder == holder:
            behind = f", which {one.behind} holds" if one.behind is not None else ""
            lines.append(f"waits for {one.right} of {one.path} for {one.waited_s:.1f} s{behind}")
    return lines[:_MOST_OTHERS] + _left_out(len(lines) - _MOST_OTHERS, "rights")


def _runs(execution: Execution) -> list[str]:
    """The runs that it has submitted and bounds."""
    children = list(execution.children or ())
    lines = [f"child {_one_line(child)}" for child in children[:_MOST_OTHERS]]
    return lines + _left_out(len(children) - _MOST_OTHERS, "child runs")


def _one_line(execution: Execution) -> str:
    """A run, with what it waits for if it is queued."""
    queued = execution.run.state is RunState.QUEUED
    return _brief(execution) + (f": waits for {'; '.join(_needs(execution))}" if queued else "")
