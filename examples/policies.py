"""Each policy of a lane, in a few lines; `docs/lanes.md` quotes the code and its output.

Run all examples, or some: `python examples/policies.py`, `python examples/policies.py collect steer`.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import structlog
from anyio import to_thread

from lanes import (
    DedupeConflict,
    GroupSpec,
    LaneBusy,
    LaneFull,
    LaneSpec,
    Message,
    ProcessFailed,
    RetrySpec,
    Run,
    RunContext,
)
from locks import LeaseLost
from runtime import Limits, Supervisor


@asynccontextmanager
async def gateway(*lanes: LaneSpec, **options: Any) -> AsyncIterator[Supervisor]:
    """A supervisor over a directory of its own."""
    with tempfile.TemporaryDirectory() as sessions:
        async with Supervisor(sessions, lanes=lanes, **options) as sup:
            yield sup


async def answer(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Stands for a model: thinks for a moment, reads the messages that arrive meanwhile, and answers all."""
    asked = [message.body for message in messages]
    await anyio.sleep(0.1)
    asked += [message.body for message in ctx.inbox.take()]
    return f"answer to {' + '.join(asked)}"


async def report(**runs: Run) -> None:
    """Print the outcome that the sender of each message gets."""
    for name, run in runs.items():
        outcome = await run.wait()
        print(f"{name}: run {run.id} {outcome.state}: {outcome.reason or outcome.value}")


# Which lane


async def patterns() -> None:
    chat = LaneSpec("session:*", handler=answer)
    vip = LaneSpec("session:vip:*", handler=answer, capacity=2, timeout=900.0)
    async with gateway(chat, vip) as sup:
        runs = [sup.post("session:ann", "hello"), sup.post("session:vip:bob", "hello")]
        for name, lane in sup.statistics().lanes.items():
            print(f"{name}: {lane.running} of {lane.capacity} running")
        for run in runs:
            await run.wait()
        print("afterwards:", dict(sup.statistics().lanes))


async def groups() -> None:
    async def work(ctx: RunContext) -> None:
        await anyio.sleep(0.1)

    job = LaneSpec("job", capacity=10, priority="background")
    chat = LaneSpec("session:*", handler=answer)
    shared = GroupSpec("main", slots=2, reserve=1)

    def started(run: Run) -> None:
        print(f"started: run {run.id} on lane {run.lane}")

    async with gateway(job, chat, groups=[shared], on_run_start=started) as sup:
        jobs = [sup.submit("job", work) for _ in range(3)]
        await sup.post("session:ann", "hello").wait()
        await jobs[-1].wait()


# The session is busy


async def queue() -> None:
    async with gateway(LaneSpec("session:*", handler=answer)) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        print("two is", two.state)
        await report(one=one, two=two)


async def reject() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, when_busy="reject")) as sup:
        one = sup.post("session:ann", "one")
        try:
            sup.post("session:ann", "two")
        except LaneBusy as error:
            print(f"two: LaneBusy: run {error.holder} has session {error.session!r}; try later: {error.retryable}")
        await report(one=one)


async def interrupt() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, when_busy="interrupt")) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "no, two")
        await report(one=one, two=two)


async def replace() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, when_busy="replace")) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        three = sup.post("session:ann", "three")
        await report(one=one, two=two, three=three)


async def collect() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, when_busy="collect")) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        three = sup.post("session:ann", "three")
        mail = sup.post("session:ann", Message("by mail", route="mail"))
        await report(one=one, two=two, three=three, mail=mail)


async def steer() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, when_busy="steer")) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "and two")
        mail = sup.post("session:ann", Message("by mail", route="mail"))
        await report(one=one, two=two, mail=mail)


# The queue is full


async def full() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, queue_limit=1)) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        try:
            sup.post("session:ann", "three")
        except LaneFull as error:
            print("three: LaneFull:", error)
        await report(one=one, two=two)


async def drop_oldest() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, queue_limit=1, when_full="drop_oldest")) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        three = sup.post("session:ann", "three")
        await report(one=one, two=two, three=three)


async def summarize() -> None:
    def shorten(run: Run, messages: Sequence[Message]) -> str:
        return f"(dropped: {', '.join(message.body for message in messages)})"

    chat = LaneSpec("session:*", handler=answer, queue_limit=1, when_full="summarize", on_drop=shorten)
    async with gateway(chat) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        three = sup.post("session:ann", "three")
        await report(one=one, two=two, three=three)


# Messages that belong together


async def debounce() -> None:
    async with gateway(LaneSpec("session:*", handler=answer, debounce=0.05)) as sup:
        one = sup.post("session:ann", "one")
        two = sup.post("session:ann", "two")
        print("the same run:", one is two)
        await report(one=one)


async def dedupe() -> None:
    async with gateway(LaneSpec("session:*", handler=answer)) as sup:
        first = sup.post("session:ann", "hello", dedupe="update-17")
        await report(first=first)
        again = sup.post("session:ann", "hello", dedupe="update-17")
        print("the same run:", again is first)
        try:
            sup.post("session:ann", "goodbye", dedupe="update-17")
        except DedupeConflict as error:
            print(f"refused: {error.key!r} is the key of run {error.run}")
        stopped = sup.post("session:ann", "how are you?", dedupe="update-18")
        stopped.cancel("by mistake")
        again = sup.post("session:ann", "how are you?", dedupe="update-18")
        await report(stopped=stopped, again=again)


# How a run ends


async def budgets() -> None:
    async def hang(ctx: RunContext) -> None:
        await anyio.sleep_forever()

    async def get_on(ctx: RunContext) -> None:
        for _ in range(3):
            await anyio.sleep(0.05)
            ctx.progress()
        await anyio.sleep_forever()

    job = LaneSpec("job", timeout=0.2, queue_timeout=0.1)
    idle = LaneSpec("idle", timeout=60.0, idle_timeout=0.1)
    async with gateway(job, idle) as sup:
        hung = sup.submit("job", hang)
        waiting = sup.submit("job", hang)
        wedged = sup.submit("idle", get_on)
        stopped = sup.submit("main", hang)
        stopped.cancel("the user has left")
        await report(hung=hung, waiting=waiting, wedged=wedged, stopped=stopped)


async def children() -> None:
    async def child(ctx: RunContext) -> str:
        await anyio.sleep(0.1)
        return f"done for run {ctx.run.parent}"

    async def parent(ctx: RunContext) -> str:
        first = ctx.submit("work", child)
        answer = await first.result()  # lends its slot meanwhile: the group has only one
        ctx.submit("work", child)  # no run waits for it: it ends with its parent
        ctx.submit("work", child, detached=True)  # outlives its parent
        return f"the child is {answer}"

    def ended(run: Run) -> None:
        assert run.outcome is not None
        print(f"ended: run {run.id}, lineage {run.lineage}, {run.state}: {run.outcome.value or run.reason}")

    work = LaneSpec("work", capacity=10, group="small")
    async with gateway(work, groups=[GroupSpec("small", slots=1)], on_run_end=ended) as sup:
        await sup.run("work", parent)


async def reset() -> None:
    async def remember(ctx: RunContext, text: str) -> None:
        await ctx.session.append({"text": text})

    async def mirror(ctx: RunContext) -> str:
        other = ctx.session_of("ann")
        await anyio.sleep(0.1)
        try:
            await other.append({"text": "late"})
        except LeaseLost as error:
            return f"refused: {type(error).__name__}"
        return "written"

    async with gateway() as sup:
        await sup.run("session:ann", remember, "long ago")
        older = sup.submit("main", mirror)
        moved = await sup.reset("ann")
        print("moved aside:", moved is not None and ".jsonl.reset." in moved)
        await sup.run("session:ann", remember, "afresh")
        await report(older=older)
        print([record["text"] for record in await sup.registry.read(sup.layout.file_of("ann"))])


# What a body can do


async def streaming() -> None:
    async def talk(ctx: RunContext) -> None:
        for word in ("to", "whom", "it", "may", "concern"):
            ctx.emit(word)
            await anyio.sleep(0.01)

    async with gateway() as sup:
        run = sup.submit("main", talk)
        async for word in run.events(buffer=100):
            print("event:", word)


async def threads() -> None:
    def crunch(ctx: RunContext, tick: threading.Event) -> str:
        ctx.session.append_sync({"text": "written by a thread"})
        while not ctx.cancelled:  # no cancellation reaches a thread: it has to check
            tick.wait(0.01)
        return "stopped by itself"

    async def body(ctx: RunContext) -> str:
        return await to_thread.run_sync(crunch, ctx, threading.Event())

    async with gateway(LaneSpec("session:*", handler=answer)) as sup:
        await report(crunching=sup.submit("session:ann", body, timeout=0.1))

        def outside() -> None:
            run = sup.post_threadsafe("session:ann", "hello from a thread")
            print("told in the thread:", run.result_sync(timeout=10.0))

        await to_thread.run_sync(outside)


async def processes() -> None:
    async def tool(ctx: RunContext, *command: str) -> str:
        done = await ctx.run_process(command)
        return done.stdout.decode().strip()

    async with gateway() as sup:
        print("printed:", await sup.run("main", tool, "echo", "hello"))
        try:
            await sup.run("main", tool, "sh", "-c", "echo no such page >&2; exit 3")
        except ProcessFailed as error:
            print("failed:", error.returncode, error.stderr)
        await report(sleeper=sup.submit("main", tool, "sleep", "60", timeout=0.1))


async def retries() -> None:
    healthy = False

    async def fetch(ctx: RunContext, messages: Sequence[Message]) -> str:
        if not healthy:
            raise ConnectionError(f"attempt {ctx.run.attempt} got no answer")
        return f"answer to {messages[0].body}"

    again = RetrySpec(attempts=3, wait=0.01, max_wait=0.05, on=OSError)
    async with gateway(LaneSpec("session:*", handler=fetch, retry=again)) as sup:
        await report(one=sup.post("session:ann", "one"))
        (parked,) = sup.parked()
        print("parked:", [message.body for message in parked.messages], "after", parked.run.attempt, "attempts")
        healthy = True
        await report(later=sup.resubmit(parked.run.id))


async def abandoned() -> None:
    released = anyio.Event()

    async def stubborn(ctx: RunContext) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except BaseException:
                continue  # never do this: the body swallows its cancellation

    async def quick(ctx: RunContext) -> str:
        return "the lane goes on"

    async with gateway(LaneSpec("job", timeout=0.1, grace=0.05), limits=Limits(abandoned=0)) as sup:
        await report(job=sup.submit("job", stubborn))
        (body,) = sup.abandoned()
        print("it stands in `released.wait()`:", "released.wait()" in body.stack)
        print("problems:", sup.statistics().problems)
        await report(next=sup.submit("job", quick))
        released.set()
        while sup.statistics().abandoned:
            await anyio.sleep(0.01)
        print("healthy again:", sup.statistics().healthy)


# What a host sees


async def hooks() -> None:
    def note(what: str, run: Run) -> None:
        print(f"{what}: run {run.id} is {run.state}")

    chat = LaneSpec("session:*", handler=answer)
    watching = {name: partial(note, name) for name in ("on_wait", "on_run_start", "on_run_end")}
    async with gateway(chat, **watching) as sup:
        sup.post("session:ann", "one")
        await sup.post("session:ann", "two").wait()


async def statistics() -> None:
    chat = LaneSpec("session:*", handler=answer, queue_limit=1, when_full="drop_oldest")
    async with gateway(chat) as sup:
        runs = [sup.post("session:ann", word) for word in ("one", "two", "three")]
        lane = sup.statistics().lanes["session:ann"]
        print(f"lane: {lane.running} running, {lane.queued} queued, {lane.totals.dropped} dropped")
        for run in runs:
            await run.wait()
        now = sup.statistics()
        print("group main:", {state: n for state, n in now.groups["main"].totals.outcomes.items() if n})
        print("runs:", {state: n for state, n in now.runs.items() if n})


EXAMPLES = (
    patterns,
    groups,
    queue,
    reject,
    interrupt,
    replace,
    collect,
    steer,
    full,
    drop_oldest,
    summarize,
    debounce,
    dedupe,
    budgets,
    children,
    reset,
    streaming,
    threads,
    processes,
    retries,
    abandoned,
    hooks,
    statistics,
)


async def main(*names: str) -> None:
    """Run the named examples, or all, and print each under its name."""
    # Log lines go to standard error, and only errors: the examples print what matters.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for example in EXAMPLES:
        if not names or example.__name__ in names:
            print(f"== {example.__name__}")
            await example()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
