"""Transcripts in the database, behind the face that runs know (`TranscriptStore`).

Each record has a number that counts up densely within its session; a `Position` has it as `offset`, and which
transcript of the session it is (a reset, or a replacement, begins a new one) as `file_id`. A run that conducts a
session writes under the number that `Ownership.begin` has given it, and counts its appends: one whose answer was lost
is sent again, and is there once. Whoever else writes, writes while its node lives.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import anyio
from anyio.lowlevel import checkpoint

from lanes.body.session import Session
from locks import Fence, LeaseLost, Position, Records, TranscriptError
from locks._loop import Post, current_loop, from_thread, on_loop_thread
from locks.lowlevel import FileClaim, NoRecord, OnError, decode, encode_all
from locks.transcript.records import BrokenLine

from ..inbox.answer import Answer
from ..inbox.rows import MAY_BECOME, MessageState
from .errors import NodeLost
from .life import Life
from .link import Link
from .ownership import RunPermit
from .step import Rows, Step
from .write_lease import BUSY_S, StoreLease

PAGE = 500
"""Records that are read at once, so that a long transcript keeps no other question waiting."""
_FINISH = "select * from {s}.finish(%s, %s, %s, %s, %s, %s::bigint, %s::text[], %s::bigint[], %s::text[], %s)"
MOST_HOLD_S = 300.0


class _Counted(NamedTuple):
    """An append of a run that conducts the session.

    One that the database has refused is not counted there, nor are, as gaps, those that were sent behind it: the next
    one that is sent has its number.
    """

    permit: RunPermit
    number: int


class PostgresTranscripts:
    """Keeps transcripts in the database. On the program's loop, but for `append_sync`."""

    def __init__(self, link: Link, life: Life, root: str) -> None:
        self._link, self._life, self._root = link, life, root
        self._loop: object = None
        self._post: Post | None = None

    def bind(self, post: Post) -> None:
        """Note the program's loop, for threads of bodies."""
        self._loop, self._post = current_loop(), post

    @property
    def store(self) -> Self:
        """Itself: what reads and writes."""
        return self

    def lease_for(
        self,
        fence: Fence,
        path: str,
        *,
        header: bytes | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
    ) -> StoreLease:
        """The write lease of a session."""
        return StoreLease(self, fence, path, wait_timeout, MOST_HOLD_S if max_hold is None else max_hold)

    def _place(self, path: str) -> str:
        return f"s:{path[len(self._root) + 1 :]}"

    async def _ask(self, text: str, values: Sequence[Any]) -> Rows:
        answer = Answer[Rows]()
        self._link.ask(Step(text, values, lambda rows: rows), answer)
        return await answer.wait()

    async def write(
        self, text: str, values: Sequence[Any], path: str, counted: _Counted | None = None
    ) -> tuple[Any, ...]:
        """Have a statement committed; returns its row. A checkpoint; cancelled, it is done all the same, or not."""
        answer = Answer[tuple[Any, ...]]()

        def report(row: tuple[Any, ...] | None, error: BaseException | None) -> None:
            # Within the report, since whoever waits for it may have been cancelled.
            if counted is not None and (row is None or row[0] in ("busy", "unlocked")):
                counted.permit.calls = counted.number - 1
            answer(row, error)

        self._link.do(Step(text, values, lambda rows: rows[0], self._place(path)), report)
        return await answer.wait()

    # Write leases

    async def take_lease(self, path: str, nonce: int, seconds: float) -> bool:
        """Have the write lease, unless another run does; returns whether it has. A checkpoint.

        Cancelled, it may have it.
        """
        values = (self._place(path), self._link.node, nonce, seconds)
        row = await self.write("select {s}.write_lease(%s, %s, %s::bigint, %s)", values, path)
        return bool(row[0])

    def leave_lease(self, path: str, nonce: int) -> None:
        """Give the write lease back, if it is had. Never blocks."""
        place = self._place(path)
        step = Step("select {s}.write_lease_left(%s, %s::bigint)", (place, nonce), lambda _: None, place)
        self._link.do(step, lambda _result, _error: None)

    # Reading

    async def read(
        self, path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
    ) -> Records:
        """Read the records: a whole prefix."""
        records, skipped = Records(), list[BrokenLine]()
        if last is not None:
            await self._read_last(path, last, on_error, records, skipped)
        else:
            async for batch in self.stream(path, on_error=on_error):
                records += batch
                skipped += batch.skipped
                records.position = batch.position
        records.skipped = tuple(skipped)
        return records

    async def _read_last(
        self, path: str, last: int, on_error: OnError, records: Records, skipped: list[BrokenLine]
    ) -> None:
        text = (
            "select e.seq, e.line, t.incarnation, t.next_seq from {s}.session t left join {s}.entry e "
            "on e.place = t.place and e.incarnation = t.incarnation and e.seq >= t.next_seq - %s "
            "where t.place = %s order by e.seq"
        )
        rows = await self._ask(text, (last, self._place(path)))
        for seq, line, incarnation, _ in rows:
            if line is not None:
                _decode(path, seq, line, on_error, records, skipped)
            records.position = Position(0 if seq is None else seq + 1, (0, incarnation))

    async def stream(
        self, path: str, *, after: Position | None = None, on_error: OnError = "skip"
    ) -> AsyncGenerator[Records, None]:
        """As `read`, in batches, from behind a position on."""
        text = (
            "select t.incarnation, t.next_seq, e.seq, e.line from {s}.session t left join {s}.entry e "
            "on e.place = t.place and e.incarnation = t.incarnation and e.seq >= %s "
            "where t.place = %s order by e.seq limit %s"
        )
        begin, which = (0, None) if after is None else (after.offset, after.file_id[1])
        end: int | None = None
        while True:
            rows = await self._ask(text, (begin, self._place(path), PAGE))
            if not rows:
                await checkpoint()
                return
            if which is not None and rows[0][0] != which:
                raise TranscriptError(f"{path} was replaced or reset since it was read", path=path)
            which = rows[0][0]
            end = int(rows[0][1]) if end is None else end  # what comes while it is read, a later reader gets
            batch, skipped = Records(), list[BrokenLine]()
            for _, _, seq, line in rows:
                if seq is not None and seq < end:
                    _decode(path, seq, line, on_error, batch, skipped)
                    begin = seq + 1
            batch.position, batch.skipped = Position(begin, (0, which)), tuple(skipped)
            yield batch
            if begin >= end or len(rows) < PAGE:
                return

    # Writing

    def check(self, path: str, fence: Fence | None) -> None:
        """Raise unless a write is legal, as far as this process knows. From any thread.

        Raises:
            LeaseLost: the run has ended, or this node may be taken for dead.
        """
        if fence is not None:
            fence.check(path)
        if not self._life.alive():
            raise NodeLost(f"node {self._link.node} of {self._link.name} is lost: nothing written to {path}", path=path)

    async def append(
        self,
        path: str,
        data: bytes,
        *,
        under: Fence | FileClaim | None = None,
        header: bytes | None = None,
        writer: int | None = None,
        ids: Sequence[int] = (),
        result: bytes | None = None,
    ) -> Position:
        """Append whole lines. A checkpoint; cancelled, they are there once and whole, or not at all.

        Args:
            writer: the number of the write lease that is held.
            ids: the messages that are answered with these lines: both are kept, or neither.
            result: what is kept with them as the value of the run, as JSON.

        Raises:
            LeaseLost: another run conducts the session, or the run may not write any more. Nothing was written; or the
                lines are there once, if the connection was lost meanwhile, which the message says.
            StoreDown: the database cannot be reached; the lines are there once, or not at all.
        """
        assert under is None or isinstance(under, Fence)
        self.check(path, under)
        lines = data.decode().split("\n")[:-1]
        place, permit = self._place(path), None if under is None else under.permit
        while True:
            counted: _Counted | None = None
            if permit is not None and permit.place == place:
                permit.calls += 1
                counted = _Counted(permit, permit.calls)
                call = (place, permit.node, permit.fence, permit.nonce, permit.calls, writer, lines)
                if ids:
                    text = _FINISH
                    values: tuple[Any, ...] = (*call, list(ids), list(MAY_BECOME[MessageState.DONE]), result)
                else:
                    text, values = "select * from {s}.append(%s, %s, %s, %s, %s, %s::bigint, %s::text[])", call
            else:
                text = "select * from {s}.note(%s, %s, %s::bigint, %s::bigint, %s::text[])"
                values = (place, self._link.node, secrets.randbits(62), writer, lines)
            tried = self._link.reconnects
            code, end, incarnation = await self.write(text, values, path, counted)
            if code == "ok":
                return Position(end, (0, incarnation))
            if code not in ("busy", "gap"):
                raise LeaseLost(
                    f"{path} is conducted by another run: {self._is_left(tried, 'nothing was written')}", path=path
                )
            await anyio.sleep(BUSY_S)  # another run holds the write lease
            self.check(path, under)

    async def finish(
        self, session: Session, record: Mapping[str, Any], ids: Sequence[int], result: bytes | None
    ) -> None:
        """Append the answer to messages, and keep that they are answered: both, or neither. A checkpoint.

        Raises:
            What `append` raises.
        """
        data = encode_all((record,), session.path)
        await self.append(session.path, data, under=session.fence, ids=ids, result=result)

    def append_sync(
        self,
        path: str,
        data: bytes,
        *,
        under: Fence | FileClaim | None = None,
        header: bytes | None = None,
        writer: int | None = None,
    ) -> Position:
        """As `append`, from a worker thread."""
        if on_loop_thread():
            raise RuntimeError("append_sync would block the event loop it waits for; use `await append(...)` there")
        if self._loop is None or self._post is None:
            raise RuntimeError("append_sync: the store has not been used on an event loop yet")

        async def append() -> Position:
            return await self.append(path, data, under=under, writer=writer)

        return from_thread(self._loop, self._post, append, f"append to {path}")

    async def set_aside(self, path: str, to: str | None, *, under: Fence) -> bool:
        """Begin a new transcript; the old one is kept (`lanes db sessions` lists it), or forgotten. A checkpoint.

        Returns whether there was one.

        Raises:
            LeaseLost: that run does not conduct the session.
        """
        self.check(path, under)
        permit, place = under.permit, self._place(path)
        if permit is None or permit.place != place:
            raise LeaseLost(f"{under.holder} does not conduct {path}", path=path)
        values = (place, permit.node, permit.fence, permit.nonce, to is not None, secrets.randbits(62))
        text = "select * from {s}.put_away(%s, %s, %s, %s, %s, %s::bigint)"
        tried = self._link.reconnects
        code, entries, _ = await self.write(text, values, path)
        if code != "ok":
            raise LeaseLost(
                f"{path} is conducted by another run: {self._is_left(tried, 'nothing was changed')}", path=path
            )
        return bool(entries)

    async def replace(
        self, path: str, records: Iterable[Mapping[str, Any]], through: Position, under: Fence, writer: int
    ) -> Position:
        """Put records in the place of what there is up to a position. A checkpoint."""
        self.check(path, under)
        lines = encode_all(records, path).decode().split("\n")[:-1]
        values = (self._place(path), secrets.randbits(62), writer, through.file_id[1], through.offset, lines)
        tried = self._link.reconnects
        code, number, incarnation = await self.write(
            "select * from {s}.replaced(%s, %s::bigint, %s::bigint, %s, %s, %s::text[])", values, path
        )
        if code == "ok":
            return Position(number, (0, incarnation))
        if code == "replaced":
            raise TranscriptError(f"{path} was replaced or reset since it was read: it stands as it is", path=path)
        raise LeaseLost(f"the write lease on {path} was lost: {self._is_left(tried, 'nothing was changed')}", path=path)

    def _is_left(self, tried: int, nothing: str) -> str:
        """What a refusal says of what is there: an answer may have been lost on the way, to a call that had worked."""
        return nothing if tried == self._link.reconnects else "it was done once before, or not at all"


def _decode(path: str, seq: int, line: str, on_error: OnError, records: Records, skipped: list[BrokenLine]) -> None:
    try:
        record = decode(line.encode())
        if record is not None:
            records.append(record)
    except NoRecord as error:
        if on_error == "raise":
            raise TranscriptError(f"{path}, record {seq}: {error}", path=path) from error
        skipped.append(BrokenLine(seq, seq + 1, str(error), len(line)))
