"""The process dies after each commit, or a commit fails: nothing accepted is lost, nothing unsafe is repeated."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from lanes import LaneError, LaneSpec, RetrySpec, WaitsForAnswer
from runtime import Supervisor
from runtime.testing.inline import Inline, inline
from tests.inboxes import FILE, copy_of, rows

OPEN = ("accepted", "started")


class Story:
    """Traffic of all kinds; what was acknowledged, and what bodies were given, each at which commit."""

    def __init__(self) -> None:
        self.commits = 0
        self.acknowledged: dict[int, tuple[int, str, Any]] = {}
        """Message to (commit, lane, body)."""
        self.given: list[tuple[int, str, Any]] = []
        """(commit, lane, body)."""

    def lanes(self) -> list[LaneSpec]:
        async def handle(ctx: Any, messages: Any) -> None:
            for one in messages:
                self.given.append((self.commits, ctx.run.lane, one.body))
            if messages[0].answer is not None:
                return
            await anyio.sleep(1)
            if ctx.run.lane == "session:fails":
                raise RuntimeError("no")
            if ctx.run.lane == "session:asks":
                raise await ctx.ask("well?", expires=5)
            if ctx.run.lane == "session:finishes":
                await ctx.finish({"n": messages[0].body})

        return [
            LaneSpec("session:*", handler=handle, grace=0),
            LaneSpec("session:fails", handler=handle, retry=RetrySpec(2, wait=1.0), grace=0),
            LaneSpec("session:repeats", handler=handle, repeat=True, grace=0),
            LaneSpec("session:collects", handler=handle, when_busy="collect", grace=0),
            LaneSpec("session:interrupts", handler=handle, when_busy="interrupt", grace=0),
        ]

    async def play(self, sup: Supervisor) -> None:
        for n in range(3):
            for kind in ("plain", "fails", "repeats", "collects", "interrupts", "asks", "finishes"):
                lane, body = f"session:{kind}", n
                try:
                    accepted = await sup.accept(lane, body, dedupe=f"{kind}{n}")
                except LaneError:
                    continue
                self.acknowledged[accepted.id] = (self.commits, lane, body)
        await anyio.sleep(40)


async def play(root: Path, writer: type[Inline]) -> Story:
    story = Story()
    async with Supervisor(root, lanes=story.lanes(), inbox=True) as sup:
        await story.play(sup)
        sup.cancel()
    return story


@pytest.mark.failure("G9", "G13")
@pytest.mark.suite("K5")
async def test_a_process_that_dies_after_any_commit_loses_nothing_and_repeats_nothing_unsafe(virtual, tmp_path):
    copies: list[Path] = []
    first = Story()

    def copied(_writer: Inline) -> None:
        first.commits += 1
        copies.append(copy_of(tmp_path / "first", tmp_path / f"{first.commits}"))

    with inline() as writer:
        writer.after = copied
        async with Supervisor(tmp_path / "first", lanes=first.lanes(), inbox=True) as sup:
            await first.play(sup)
        total = first.commits
    assert total > 60
    for commit in range(1, total + 1):
        await check(first, copies[commit - 1], commit)


async def check(first: Story, root: Path, commit: int) -> None:
    """A second process takes over what the first one had kept by a commit."""
    before = {(lane, int(body)): state for lane, body, state in rows(root, "lane, body, state", "ask IS NULL")}
    second = Story()
    with inline():
        async with Supervisor(root, lanes=second.lanes(), inbox=True) as sup:
            await anyio.sleep(30)
            unknown = {(row.lane, int(row.body)) for row in await sup.unknown() if row.ask is None}
    after = {(lane, int(body)): state for lane, body, state in rows(root, "lane, body, state", "ask IS NULL")}
    assert not [state for state in after.values() if state in OPEN], commit
    assert unanswered(root) == [], f"commit {commit}: questions are closed, and no message says so"
    given = [(lane, body) for _, lane, body in second.given if body is not None]
    earlier = {(lane, body) for at, lane, body in first.given if at <= commit}
    for when, lane, body in first.acknowledged.values():
        if when <= commit:
            assert (lane, body) in before, f"commit {commit}: {lane} {body} was acknowledged, and is not kept"
    for (lane, body), state in before.items():
        repeated = (lane, body) in given and (lane, body) in earlier
        if lane not in ("session:repeats", "session:fails"):
            assert not repeated, f"commit {commit}: {lane} {body} was begun twice"
        if state == "accepted" and (lane, body) not in earlier:
            ended = after[lane, body] in ("superseded", "cancelled")
            assert (lane, body) in given or ended, f"commit {commit}: {lane} {body} was forgotten"
        if state == "started" and lane != "session:repeats":
            assert (lane, body) in unknown, f"commit {commit}: {lane} {body} is not named"
    for lane in {lane for lane, _ in given}:
        order = [body for one, body in given if one == lane]
        assert sorted(set(order)) == list(dict.fromkeys(order)), f"commit {commit}: {lane} {order}"


def unanswered(root: Path) -> list[tuple[Any, ...]]:
    """Questions that are closed without a message that brings the answer, or the expiry."""
    with closing(sqlite3.connect(root / FILE)) as connection:
        return connection.execute(
            "SELECT id FROM ask WHERE state != 'open' AND id NOT IN (SELECT ask FROM message WHERE ask IS NOT NULL)"
        ).fetchall()


@pytest.mark.failure("G10")
@pytest.mark.suite("K5")
async def test_a_commit_that_fails_at_any_point_loses_nothing(virtual, tmp_path):
    for n in range(0, 60, 3):
        root = tmp_path / str(n)
        first = Story()
        count = 0

        def fails(_writer: Inline, n: int = n) -> None:
            nonlocal count
            count += 1
            if count > n:
                raise OSError(5, "Input/output error")

        with inline() as writer:
            writer.before = fails
            sup = Supervisor(root, lanes=first.lanes(), inbox=True)
            try:
                async with sup:
                    await first.play(sup)
            except LaneError:
                pass  # it could not even be opened
        if not (root / ".lanes" / "inbox.db").exists():
            continue
        kept = {(lane, int(body)) for lane, body in rows(root, "lane, body", "ask IS NULL")}
        assert {(lane, body) for _, lane, body in first.acknowledged.values()} <= kept
        await check(first, root, -1)


def test_the_exception_of_a_question_can_be_pickled():
    import pickle

    from lanes import Question

    question = Question(id="x", lane="l", session=None, question=1, asked_at=0.0)
    assert pickle.loads(pickle.dumps(WaitsForAnswer(question))).question == question


@pytest.mark.suite("K5")
async def test_a_stop_after_any_commit_loses_nothing_and_repeats_nothing_unsafe(virtual, tmp_path):
    for n in range(2, 60, 15):
        root, first = tmp_path / str(n), Story()
        sup = Supervisor(root, lanes=first.lanes(), inbox=True)

        def counted(_writer: Inline, n: int = n, first: Story = first, sup: Supervisor = sup) -> None:
            first.commits += 1
            if first.commits == n:
                sup.cancel()

        with inline() as writer:
            writer.after = counted
            async with sup:
                await first.play(sup)
        await check(first, root, first.commits)
