"""What nobody can have meant, at the lanes: a typed error at the call, naming it and what is allowed; nothing lost."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, get_args

import anyio
import pytest
from anyio import to_thread

from lanes import (
    Draining,
    GroupSpec,
    InvalidLane,
    LaneError,
    LaneSpec,
    Message,
    RetrySpec,
    WrongThread,
)
from lanes.checks import MAX_MESSAGE_BYTES
from lanes.spec import WhenBusy
from runtime import Supervisor
from tests.supervised import assert_empty

NAN, INF = float("nan"), float("inf")


async def answer(ctx, messages):
    return [message.body for message in messages]


async def body(ctx):
    return None


def on_drop(run, messages):
    return None


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no words for it")


# Specifications that contradict each other


@pytest.mark.failure("E3")
@pytest.mark.parametrize(
    "fields, told",
    [
        ({"timeout": 5.0, "idle_timeout": 6.0}, r"idle_timeout: 6.0 s is longer than timeout \(5.0 s\)"),
        ({"debounce": 5.0, "queue_timeout": 5.0}, r"debounce: 5.0 s is not shorter than queue_timeout \(5.0 s\)"),
        ({"debounce": 5.0, "queue_limit": 0}, r"debounce: 5.0 s lets every message wait, and queue_limit is 0"),
        ({"when_busy": "interrupt", "queue_limit": 0}, r"when_busy: 'interrupt' lets work wait.* queue_limit is 0"),
        ({"when_busy": "replace", "queue_limit": 0}, r"when_busy: 'replace' lets work wait.* queue_limit is 0"),
        ({"when_busy": "collect", "queue_limit": 0}, r"when_busy: 'collect' lets work wait.* queue_limit is 0"),
        ({"when_busy": "steer", "queue_limit": 0}, r"when_busy: 'steer' lets work wait.* queue_limit is 0"),
        (
            {"when_full": "drop_oldest", "queue_limit": None},
            r"when_full: 'drop_oldest' drops nothing.* queue_limit is None",
        ),
        ({"when_full": "drop_oldest", "queue_limit": 0}, r"when_full: 'drop_oldest' drops nothing.* queue_limit is 0"),
        ({"when_full": "summarize"}, r"on_drop: is missing; when_full 'summarize' needs what it returns"),
        ({"on_drop": on_drop}, r"on_drop: is never called, since when_full is 'reject'"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_with_both_names(fields, told):
    with pytest.raises(InvalidLane, match=f"lane 'work', {told}"):
        LaneSpec("work", handler=answer, **fields)


@pytest.mark.parametrize("field", ["timeout", "grace", "debounce", "idle_timeout", "queue_timeout"])
@pytest.mark.parametrize(
    "value, shown",
    [
        (NAN, "nan"),
        (INF, "inf"),
        (-1, "-1"),
        (True, "True"),
        ("5", "'5'"),
        (1j, "1j"),
        (10**400, "1000"),
        (-(10**400), "-1000"),
        (1e300, "1e"),
    ],
)
def test_a_time_that_is_none_names_itself_and_what_is_allowed(field, value, shown):
    with pytest.raises(
        InvalidLane, match=rf"lane 'work', {field}: {shown}.* is no duration; allowed: seconds (from|above) 0"
    ):
        LaneSpec("work", **{field: value})


@pytest.mark.parametrize("field", ["wait", "max_wait"])
@pytest.mark.parametrize("value", [NAN, INF, -1, "5", None])
def test_a_wait_between_attempts_that_is_none_names_itself(field, value):
    with pytest.raises(InvalidLane, match=rf"retry, {field}: .* is no duration; allowed: seconds from 0"):
        RetrySpec(**{field: value})


async def test_times_as_long_as_allowed_are_borne_by_every_event_loop(tmp_path):
    ages = 100 * 366 * 86400.0
    lane = LaneSpec("work", timeout=ages, idle_timeout=ages, queue_timeout=ages, grace=ages)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        run, waiting = sup.submit("work", body, session="a"), sup.submit("work", body, session="a")
        assert await run.result() is None and await waiting.result() is None


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"when_busy": "queu"}, r"lane 'work', when_busy: 'queu' is unknown; allowed: 'queue', 'reject', 'interrupt'"),
        ({"when_busy": ["queue"]}, r"lane 'work', when_busy: \['queue'\] is unknown; allowed: 'queue'"),
        (
            {"when_full": None},
            r"lane 'work', when_full: None is unknown; allowed: 'reject', 'drop_oldest', 'summarize'",
        ),
        (
            {"priority": "high"},
            r"lane 'work', priority: 'high' is unknown; allowed: 'foreground', 'normal', 'background'",
        ),
        ({"priority": ["normal"]}, r"lane 'work', priority: \['normal'\] is unknown"),
        ({"group": ["main"]}, r"lane 'work', group: \['main'\] is not allowed; allowed: the name of a group"),
        ({"group": None}, r"lane 'work', group: None is not allowed"),
        ({"capacity": 0}, r"lane 'work', capacity: 0 is not allowed; allowed: a whole number from 1"),
        ({"queue_limit": "20"}, r"lane 'work', queue_limit: '20' is not allowed; allowed: a whole number from 0"),
        ({"retry": 3}, r"lane 'work', retry: 3 is not allowed; allowed: a RetrySpec, or None"),
    ],
)
def test_a_value_that_is_not_allowed_names_lane_field_value_and_what_is(fields, told):
    with pytest.raises(InvalidLane, match=told):
        LaneSpec("work", **fields)


def test_a_value_that_cannot_be_printed_is_refused_all_the_same():
    unprintable: Any = Unprintable()
    endless = 10**5000  # Python prints no number of more than 4300 digits
    with pytest.raises(InvalidLane, match="timeout: a int that cannot be printed is no duration; allowed: seconds"):
        LaneSpec("work", timeout=endless)
    with pytest.raises(
        InvalidLane, match="capacity: a int that cannot be printed is not allowed; allowed: a whole number"
    ):
        LaneSpec("work", capacity=-endless)
    with pytest.raises(InvalidLane, match="pattern: a Unprintable that cannot be printed is not allowed; allowed: "):
        LaneSpec(unprintable)


async def too_few(ctx):
    return None


async def too_many(ctx, messages, more):
    return None


async def by_keyword(ctx, *, messages):
    return None


async def streams(ctx, messages):
    yield None


def plain(ctx, messages):
    return None


class Callable:
    async def __call__(self, ctx, messages):
        return None


@pytest.mark.parametrize(
    "handler", [plain, streams, lambda ctx, messages: None, print, Callable, partial(plain, None), "answer", 7]
)
def test_a_handler_that_is_not_async_is_refused_with_its_shape(handler):
    with pytest.raises(
        InvalidLane, match=r"lane 'work', handler: .* is not async; allowed: `async def handler\(ctx, mess"
    ):
        LaneSpec("work", handler=handler)


@pytest.mark.parametrize("handler", [too_few, too_many, by_keyword, partial(answer, None)])
def test_a_handler_with_other_arguments_is_refused_with_its_shape(handler):
    with pytest.raises(InvalidLane, match=r"lane 'work', handler: .* arg.*; allowed: `handler\(ctx, messages\)`"):
        LaneSpec("work", handler=handler)


@pytest.mark.parametrize(
    "handler", [answer, Callable(), Callable().__call__, partial(too_many, more=1), functools.partial(Callable())]
)
def test_a_handler_of_any_async_kind_is_allowed(handler):
    assert LaneSpec("work", handler=handler).handler is handler


@pytest.mark.parametrize("callback", [answer, lambda run: None, body, 7, "on_drop"])
def test_an_on_drop_that_cannot_be_called_so_is_refused_with_its_shape(callback):
    with pytest.raises(InvalidLane, match=r"lane 'work', on_drop: .*allowed: .*on_drop\(run, messages\)`"):
        LaneSpec("work", when_full="drop_oldest", on_drop=callback)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"lanes": LaneSpec("work")}, r"lanes: LaneSpec\(.* is not allowed; allowed: a list of LaneSpec"),
        ({"lanes": ["work"]}, r"lanes: 'work' is not allowed; allowed: LaneSpec"),
        ({"groups": [LaneSpec("work")]}, r"groups: LaneSpec\(.* is not allowed; allowed: GroupSpec"),
        ({"groups": 7}, r"groups: 7 is not allowed; allowed: a list of GroupSpec"),
        ({"lanes": [LaneSpec("work")] * 2}, r"pattern: 'work' is specified twice"),
        ({"groups": [GroupSpec("few", slots=1)] * 2}, r"group: 'few' is specified twice"),
        (
            {"lanes": [LaneSpec("work", group="few")]},
            r"lane 'work', group: 'few' is unknown; allowed: background, control",
        ),
    ],
)
def test_specifications_that_do_not_go_together_are_refused(tmp_path, fields, told):
    with pytest.raises(InvalidLane, match=told):
        Supervisor(tmp_path, **fields)


# Calls


@pytest.mark.parametrize("lane", ["nowhere", "", "work ", "session", "other:*", 7, None, ["work"], Unprintable()])
async def test_a_lane_that_no_pattern_knows_is_refused_with_those_that_are_known(virtual, tmp_path, lane):
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
        for call in (lambda: sup.post(lane, "hello"), lambda: sup.submit(lane, body)):
            with pytest.raises(InvalidLane, match=r"lane: .* is unknown; allowed: control, cron, .*session:\*, .*work"):
                call()
        assert_empty(sup)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({"timeout": NAN}, "timeout: nan is no duration; allowed: seconds above 0"),
    ({"timeout": -1}, "timeout: -1 is no duration"),
    ({"timeout": 10**400}, "timeout: 1000.* is no duration"),
    ({"timeout": 1.0}, r"timeout: 1.0 s is shorter than idle_timeout \(2.0 s\)"),
    ({"priority": 0}, "priority: 0 is unknown; allowed: 'foreground'"),
    (
        {"when_busy": "shout"},
        "when_busy: 'shout' is unknown; allowed: 'queue', 'reject', 'interrupt', 'replace', 'collect', 'steer'",
    ),
    ({"dedupe": 7}, "dedupe: 7 is not allowed; allowed: 1 to 1024 characters of text"),
    ({"session": "a\0b"}, "session"),
    ({"session": 7}, "session"),
    ({"session": ""}, "session"),
]


@pytest.mark.parametrize("options, told", CALLS)
async def test_a_post_that_cannot_be_is_refused_and_changes_nothing(virtual, tmp_path, options, told):
    lane = LaneSpec(
        "work", handler=answer, idle_timeout=2.0, when_busy="interrupt", when_full="drop_oldest", queue_limit=1
    )
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        running, queued = sup.post("work", "1"), sup.post("work", "2", when_busy="queue")
        with pytest.raises(ValueError, match=told):
            sup.post("work", "3", **options)
        assert (running.state, running.reason, queued.state) == ("running", "", "queued")
        assert await running.result() == ["1"] and await queued.result() == ["2"]
        assert sup.post("work", "4").id == queued.id + 1  # not even a number was given away
        sup.cancel()


@pytest.mark.parametrize(
    "fn, options, told",
    [
        (None, {}, "fn: None cannot be called; allowed: an async function that takes the context"),
        ("body", {}, "fn: 'body' cannot be called"),
        (body, {"turn": 0}, "turn: 0 is not allowed; allowed: True or False"),
        (body, {"turn": "no"}, "turn: 'no' is not allowed"),
        (body, {"priority": "high"}, "priority: 'high' is unknown"),
        (body, {"timeout": 0}, "timeout: 0 is no duration"),
    ],
)
async def test_a_submission_that_cannot_be_is_refused(virtual, tmp_path, fn, options, told):
    async with Supervisor(tmp_path) as sup:
        with pytest.raises(InvalidLane, match=told):
            sup.submit("main", fn, **options)
        assert_empty(sup)


async def test_a_body_that_is_not_async_or_takes_other_arguments_fails_its_run_and_no_other(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        for wrong in (plain, lambda: None, len):
            with pytest.raises(TypeError):
                await sup.submit("main", wrong).result()
        assert await sup.submit("main", body).result() is None
        assert_empty(sup)


async def test_a_post_to_a_lane_without_a_handler_says_what_to_use(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        with pytest.raises(
            InvalidLane, match=r"lane 'main' has no handler; post needs LaneSpec\(handler=\.\.\.\), or use submit"
        ):
            sup.post("main", "hello")
        assert_empty(sup)


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


ENORMOUS = {
    "text": "x" * (MAX_MESSAGE_BYTES + 1),
    "bytes": bytes(MAX_MESSAGE_BYTES + 1),
    "a list of texts": ["x" * 1024] * (16 * 1024 + 1),
    "a list of nothing": [None] * (MAX_MESSAGE_BYTES + 1),
    "a mapping": {"parts": [{"text": "x" * MAX_MESSAGE_BYTES}], "more": "x"},
}


@pytest.mark.parametrize("kind", ENORMOUS)
async def test_an_enormous_message_is_refused_with_what_is_allowed(virtual, tmp_path, kind):
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
        for message in (ENORMOUS[kind], Message(ENORMOUS[kind], "chat")):
            with pytest.raises(InvalidLane, match=r"message: .* of more than 16777216 bytes; allowed: 16777216 bytes"):
                sup.post("work", message)
        assert_empty(sup)


async def test_what_is_in_a_message_that_is_too_long_is_not_looked_at(virtual, tmp_path):
    class Long(dict):
        def __len__(self):
            return MAX_MESSAGE_BYTES + 1

        def keys(self):
            raise AssertionError("looked at")

    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
        with pytest.raises(InvalidLane, match="message: Long of more than"):
            sup.post("work", Long())


async def test_a_message_as_large_as_allowed_of_any_shape_is_taken(virtual, tmp_path):
    ring: list[Any] = []
    ring.append(ring)
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer, queue_limit=None)]) as sup:
        for message in ("x" * MAX_MESSAGE_BYTES, ring, _deep(), None, object(), b"", {}):
            run = sup.post("work", message)
            (taken,) = await run.result()
            assert taken is message


# Threads, and times at which nothing is taken


async def test_the_wrong_call_from_another_thread_names_the_right_one_and_takes_nothing(tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
        for call in (partial(sup.submit, "work", body), partial(sup.post, "work", "hello")):
            with pytest.raises(
                WrongThread, match="belong to the event loop's thread; use submit_threadsafe, post_threadsafe"
            ):
                await to_thread.run_sync(call)
        for right in (partial(sup.submit_threadsafe, "work", body), partial(sup.post_threadsafe, "work", "hello")):
            with pytest.raises(WrongThread, match=r"_threadsafe would block the event loop; use (submit|post) there"):
                right()
        assert_empty(sup)
        run = await to_thread.run_sync(partial(sup.post_threadsafe, "work", "hello"))
        assert await run.result() == ["hello"]


async def test_a_call_from_another_thread_raises_there_what_is_wrong(tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
        with pytest.raises(InvalidLane, match="timeout: nan is no duration"):
            await to_thread.run_sync(partial(sup.post_threadsafe, "work", "hello", timeout=NAN))
        assert_empty(sup)


async def test_nothing_is_taken_before_the_start_and_after_the_stop(tmp_path):
    sup = Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)])
    calls = [partial(sup.submit, "work", body), partial(sup.post, "work", "hello")]
    threaded = [partial(sup.submit_threadsafe, "work", body), partial(sup.post_threadsafe, "work", "hello")]
    for starts in (True, False):
        for call in calls:
            with pytest.raises(Draining, match="does not accept work: it is draining, stopped, or not started yet"):
                call()
        for call in [*threaded, *calls]:
            with pytest.raises(Draining, match="does not accept work"):
                await to_thread.run_sync(call)
        with pytest.raises(Draining, match="does not accept work"):
            await sup.run("work", body)
        if starts:
            async with sup:
                pass
    assert issubclass(Draining, LaneError)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_taken_once_the_event_loop_has_ended(tmp_path, backend):
    async def main():
        async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=answer)]) as sup:
            return sup

    sup = anyio.run(main, backend=backend)
    for call in (partial(sup.submit_threadsafe, "work", body), partial(sup.post, "work", "hello")):
        with pytest.raises(Draining, match="does not accept work"):
            call()


@pytest.mark.failure("G5")
async def test_what_is_posted_while_draining_is_refused_and_what_was_queued_is_told(virtual, tmp_path):
    async def slow(ctx, messages):
        await anyio.sleep(10)

    async with Supervisor(tmp_path, lanes=[LaneSpec("work", handler=slow)]) as sup:
        running, queued = sup.post("work", "1"), sup.post("work", "2")
        async with anyio.create_task_group() as group:
            group.start_soon(sup.drain, 60.0)
            await virtual.settle()
            for policy in get_args(WhenBusy):
                with pytest.raises(Draining):
                    sup.post("work", "3", when_busy=policy)
        assert running.outcome is not None and running.outcome.state == "done"
        await sup.stop()
        assert (await queued.wait()).reason == "the supervisor stopped before it started"
