"""`lanes db`: the schema in which several processes share their sessions, served or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from lanes import Question

from ..inbox.errors import AskClosed, InboxInvalid
from ..inbox.rows import MessageState
from ..postgres.errors import StoreDown
from ..postgres.settings import PostgresStore
from ..trial.output import Output
from ..usage_error import UsageError
from .inbox import as_json_of, as_line_of, no_answer, print_questions, say_no, value_of
from .remote import lasting, printable
from .stores import store_of

try:
    from ..postgres import by_hand
except ImportError as failure:
    raise UsageError(
        f"lanes db: its driver cannot be imported ({failure}); allowed: with `pip install session-lanes[postgres]`"
    ) from None

Result = TypeVar("Result")


def init(url: str, schema: str) -> int:
    """Make the schema unless it is there, or bring it up to date; returns the exit code."""
    store = store_of(url, schema)

    def say(done: str) -> int:
        Output(json=False).line(printable(f"{store.name}: {done}"))
        return 0

    return _on(store, lambda connection: by_hand.made(connection, store), say, ours=False)


def check(url: str, schema: str, *, as_json: bool) -> int:
    """Print what a node needs of the database, and whether it is so; returns the exit code."""
    store, output = store_of(url, schema), Output(json=as_json)

    def say(found: list[by_hand.Finding]) -> int:
        if as_json:
            output.result(json.dumps({"findings": [msgspec.to_builtins(one) for one in found]}))
        else:
            for one in found:
                output.line(printable(f"{one.level:6} {one.name:12} {one.text}"))
        return int(any(one.level == "wrong" for one in found))

    return _on(store, lambda connection: by_hand.examined(connection, store), say, ours=False)


def show_nodes(url: str, schema: str, *, as_json: bool) -> int:
    """Print the processes that share the sessions; returns the exit code."""
    store, output = store_of(url, schema), Output(json=as_json)

    async def look(connection: by_hand.Connection) -> tuple[list[by_hand.NodeRow], by_hand.Totals]:
        return await by_hand.fleet(connection, schema)

    def say(found: tuple[list[by_hand.NodeRow], by_hand.Totals]) -> int:
        nodes, totals = found
        if as_json:
            output.result(json.dumps({"nodes": [msgspec.to_builtins(one) for one in nodes]} | totals._asdict()))
            return 0
        for one in nodes:
            output.line(
                printable(
                    f"{one.name:16} {one.state:6} {one.host}, process {one.pid}, joined {lasting(one.joined_s)} ago, "
                    f"heard of {one.silent_s:.1f} s ago of {one.ttl:g}: {one.sessions:,} sessions, {one.open:,} open "
                    f"messages (node {one.id})"
                )
            )
        output.line(
            f"{len(nodes)} nodes; {totals.sessions:,} sessions: {totals.owned:,} conducted, "
            f"{totals.unowned:,} wait for a node"
        )
        return 0

    return _on(store, look, say)


def show_sessions(
    url: str, schema: str, *, key: str | None, node: str | None, only_open: bool, limit: int, as_json: bool
) -> int:
    """Print sessions; returns the exit code."""
    store, output = store_of(url, schema), Output(json=as_json)

    def say(found: list[by_hand.SessionRow]) -> int:
        if as_json:
            output.result(json.dumps({"sessions": [msgspec.to_builtins(one) for one in found]}))
            return 0
        for one in found:
            output.line(printable(_session_line(one)))
        output.line(f"{len(found)} shown")
        return 0

    return _on(
        store,
        lambda connection: by_hand.sessions(connection, schema, key=key, node=node, only_open=only_open, at_most=limit),
        say,
    )


def _session_line(one: by_hand.SessionRow) -> str:
    owner = (
        f"conducted by {one.owner or f'node {one.node}, which is gone'}"
        if one.node is not None
        else "conducted by none"
    )
    waits = "" if one.oldest_s is None else f", {one.open:,} open, the oldest for {lasting(max(0.0, one.oldest_s))}"
    earlier = f", {one.earlier} earlier transcripts" if one.earlier else ""
    return (
        f"{one.session}: {owner}{waits}{', wanted by another' if one.wanted else ''}, {one.records:,} records{earlier}"
    )


def show_messages(
    url: str, schema: str, *, states: Sequence[str], lane: str | None, session: str | None, limit: int, as_json: bool
) -> int:
    """Print messages, the newest first; returns the exit code."""
    store, output = store_of(url, schema), Output(json=as_json)
    chosen = [MessageState(state) for state in states]

    async def look(connection: by_hand.Connection) -> tuple[list[Any], dict[str, int]]:
        rows = await by_hand.listed(connection, schema, states=chosen, lane=lane, session=session, at_most=limit)
        return rows, await by_hand.counts(connection, schema)

    def say(found: tuple[list[Any], dict[str, int]]) -> int:
        rows, counts = found
        if as_json:
            output.result(json.dumps({"counts": counts, "messages": [as_json_of(row) for row in rows]}))
            return 0
        for row in rows:
            output.line(as_line_of(row))
        total = ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "nothing"
        output.line(printable(f"{store.name}: {total}"))
        return 0

    return _on(store, look, say)


def show_message(url: str, schema: str, message: int) -> int:
    """Print all that is kept of a message; returns the exit code."""
    store, output = store_of(url, schema), Output(json=False)

    def say(row: Any) -> int:
        if row is None:
            return say_no(f"message {message} is not kept in {store.name}")
        for name, value in as_json_of(row).items():
            if value is not None and value != "":
                output.line(f"{name:12} {printable(value if isinstance(value, str) else json.dumps(value))}")
        return 0

    return _on(store, lambda connection: by_hand.one(connection, schema, message), say)


def requeue(url: str, schema: str, messages: Sequence[int]) -> int:
    """Have messages wait again; returns the exit code."""
    return _change(url, schema, messages, by_hand.requeue, "waits again", "parked, dropped or unknown")


def discard(url: str, schema: str, messages: Sequence[int]) -> int:
    """Have messages wait for nothing any more; returns the exit code."""
    return _change(url, schema, messages, by_hand.discard, "is discarded", "parked, unknown or waiting")


def show_asks(url: str, schema: str, *, limit: int, as_json: bool) -> int:
    """Print the questions that wait for an answer, the oldest first; returns the exit code."""
    store, output = store_of(url, schema), Output(json=as_json)

    def say(found: list[Question]) -> int:
        if as_json:
            output.result(json.dumps({"questions": [msgspec.to_builtins(one) for one in found]}))
            return 0
        return print_questions(found, store.name)

    return _on(store, lambda connection: by_hand.open_questions(connection, schema, limit), say)


def answer(url: str, schema: str, ask_id: str, value: str, *, by: str, as_json: bool) -> int:
    """Answer a question; returns the exit code.

    Args:
        as_json: whether `value` is JSON, and not a text.

    Raises:
        UsageError: the value is no JSON, or not one of the options.
    """
    given = value_of(value, as_json=as_json)

    async def answered(connection: by_hand.Connection) -> int | AskClosed:
        try:
            return await by_hand.answer(connection, schema, ask_id, given, by)
        except AskClosed as error:
            return error
        except ValueError as error:
            raise no_answer(value, ask_id, error) from None

    def say(found: int | AskClosed) -> int:
        if isinstance(found, AskClosed):
            return say_no(str(found))
        Output(json=False).line(f"answered: message {found}")
        return 0

    return _on(store_of(url, schema), answered, say)


def _change(
    url: str,
    schema: str,
    messages: Sequence[int],
    change: Callable[[by_hand.Connection, str, int], Awaitable[bool]],
    done: str,
    allowed: str,
) -> int:
    store, output = store_of(url, schema), Output(json=False)

    async def change_all(connection: by_hand.Connection) -> int:
        code = 0
        for message in messages:
            row = await by_hand.one(connection, schema, message)
            if row is None:
                code = say_no(f"message {message} is not kept in {store.name}")
            elif await change(connection, schema, message):
                output.line(f"message {message}, which was {row.state}, {done}")
            else:
                code = say_no(f"message {message} is {row.state}; allowed: one that is {allowed}")
        return code

    return _on(store, change_all, lambda code: code)


def _on(
    store: PostgresStore,
    look: Callable[[by_hand.Connection], Awaitable[Result]],
    say: Callable[[Result], int],
    *,
    ours: bool = True,
) -> int:
    """Connect, look, and print what was found.

    Args:
        ours: whether the schema must be one of ours.

    Raises:
        UsageError: it is none.
    """

    async def ask() -> Result:
        async with by_hand.opened(store) as connection:
            if ours:
                await by_hand.see_form(connection, store)
            return await look(connection)

    try:
        found = asyncio.run(ask())
    except StoreDown as error:
        return say_no(str(error))
    except InboxInvalid as error:
        raise UsageError(str(error)) from None
    return say(found)
