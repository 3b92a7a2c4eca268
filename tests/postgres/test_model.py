"""The functions of the database against `model`, whatever nodes call, late and again, while they die and are inherited.

A node that was reaped or has left goes on calling: its reports come late, and change nothing of what others have. Now
and then the answer of a call is lost, and it is called again at once: the answer is the same, and nothing changes.
After each call all rows are compared. `LANES_LONG=1` plays 5,000 examples instead of 24.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from runtime.inbox.rows import MAY_BECOME, MessageState

from .database import SOUND, Caller, Database
from .model import Kept, Model, Run, is_alone

EXAMPLES = 5_000 if os.environ.get("LANES_LONG") else 24
STEPS = 90
S = MessageState
SESSIONS = ("s", "t", None)
KEYS = (None, None, None, "k")
ENDS = (S.DONE, S.DONE, S.FAILED, S.PARKED, S.CANCELLED, S.SUPERSEDED)
_tokens = count(1_000)

ROWS = """
select json_build_array(
  array(select id from {s}.node order by id),
  array(select json_build_array(place, node) from {s}.want order by at, place, node),
  array(select json_build_array(id, session, state) from {s}.ask order by id),
  array(select json_build_array(id, place, state, attempt, dedupe, asked, state = 'unknown' and told)
    from {s}.message order by id),
  array(select json_build_array(place, owner, fence, nonce, calls, incarnation, next_seq, wanted, pending,
    case when pending > 0 then since end) from {s}.session order by place))
"""


@pytest.fixture
def caller(dsn: str, schema: str) -> Iterator[Caller]:
    database = Database(dsn, schema)
    yield database.connect()
    database.close()


class Play:
    """Nodes, and what they know."""

    def __init__(self, caller: Caller) -> None:
        self.caller, self.model = caller, Model()
        self.ever: list[int] = []
        """Nodes, those that are gone, too."""
        self.runs: list[Run] = []
        self.calls: dict[Run, int] = {}
        self.is_lost = False
        """Whether the answer of the next call is lost."""

    def do(self, name: str, a: int, b: int, lost: bool) -> None:
        self.is_lost = lost
        while len(self.model.nodes) < 2:
            self.joins(0, 0)
        getattr(self, name)(a, b)
        self.compare()

    def call(self, function: str, *arguments: Any, same: bool = True) -> list[tuple[Any, ...]]:
        answer = self.caller.call(function, *arguments)
        if same and self.is_lost:
            after = self.rows()
            assert self.caller.call(function, *arguments) == answer
            assert self.rows() == after
        return answer

    def value(self, function: str, *arguments: Any, same: bool = True) -> Any:
        return self.call(function, *arguments, same=same)[0][0]

    # What is compared

    def rows(self) -> Any:
        return self.caller.sql(ROWS)[0][0]

    def compare(self) -> None:
        model = self.model
        messages = [
            [number, one.place, one.state, one.attempt, one.key, one.asked, one.state is S.UNKNOWN and one.told]
            for number, one in sorted(model.messages.items())
        ]
        places = [
            [
                *(name, one.owner, one.fence, one.nonce, one.calls, one.incarnation, one.lines, one.wanted),
                *(model.pending(name), one.since if model.pending(name) else None),
            ]
            for name, one in sorted(model.places.items())
        ]
        asks = [[name, *ask] for name, ask in sorted(model.asks.items())]
        assert self.rows() == [sorted(model.nodes), [*map(list, model.wants)], asks, messages, places]

    # Who calls, and about what

    def node(self, n: int) -> int:
        return self.ever[-1 - n % min(4, len(self.ever))]

    def conductor(self, place: str, n: int) -> int:
        """The node of a place, mostly."""
        owner = self.model.places[place].owner if place in self.model.places else None
        return self.node(n) if owner is None or n % 4 == 3 else owner

    def message(self, n: int, *states: S) -> int | None:
        """One of the newest messages, mostly in one of some states."""
        known = list(self.model.messages)
        fit = [one for one in known if self.model.messages[one].state in states] if n % 4 else []
        known = (fit or known)[-4:]
        return known[n % len(known)] if known else None

    def of(self, message: int, n: int) -> int:
        return self.conductor(self.model.messages[message].place, n)

    def of_a_run(self, n: int) -> tuple[Run, list[int]] | None:
        if not self.runs:
            return None
        run = self.runs[-1 - (n // 6) % min(2, len(self.runs))]
        return run, [one for one, row in self.model.messages.items() if row.place == run.place][-2:]

    def new(self, b: int) -> Kept:
        session = SESSIONS[b % 3]
        place = f"m:{next(_tokens)}" if session is None else f"s:{session}"
        return Kept(place, session, KEYS[b % 4], repeat=b % 3)

    # Nodes

    def joins(self, _a: int, _b: int) -> None:
        node = next(_tokens)
        self.caller.sql("insert into {s}.node (id, name, host, pid, ttl, grace) values (%s, 'n', 'h', 1, 1e6, 0)", node)
        self.model.nodes[node] = False
        self.ever.append(node)

    def falls_silent(self, a: int, _b: int) -> None:
        node = self.ever[-1 - a % len(self.ever)]
        self.caller.sql("update {s}.node set beat_at = '-infinity' where id = %s", node)
        if node in self.model.nodes:
            self.model.nodes[node] = True

    def dies_in_the_middle(self, a: int, b: int) -> None:
        """What a node has started is cut off, and inherited."""
        started = [row.place for row in self.model.messages.values() if row.state is S.STARTED]
        node = self.model.places[started[a % len(started)]].owner if started else None
        if node is not None:
            self.falls_silent(self.ever[::-1].index(node), b)
            self.compare()
            self.reaps(b, a)

    def reaps(self, a: int, _b: int) -> None:
        node = self.node(a)
        found = {place: pending for place, _, pending in self.call("reaped", node, same=False) if place is not None}
        assert found == self.model.reaped(node)

    def leaves(self, a: int, _b: int) -> None:
        node = self.node(a)
        assert self.value("gone", node, same=False) == self.model.gone(node)

    def claims(self, a: int, b: int) -> None:
        node, at_most = self.node(a), 1 + b % 3
        if b % 2:
            found = self.call("claimed", node, at_most, same=False)
        else:
            text = "select {s}.claimed_fairly(%s, %s::bigint[], %s::float8[])"
            found = self.caller.sql(text, node, [0, at_most - 1, 1], [0, 0, 0])
        assert {place for (place,) in found} == self.model.claimed(node, at_most)

    def claims_what_is_untold(self, a: int, _b: int) -> None:
        node = self.node(a)
        tried: list[int] = []
        found = self.caller.sql(
            "select * from {s}.claimed_untold(%s, %s::text[], %s::bigint[], 100)", node, ["main"], tried
        )
        assert set(found) == self.model.claimed_untold(node)

    def wants(self, a: int, b: int) -> None:
        node, place = self.node(a), f"s:{SESSIONS[b % 2]}"
        assert self.value("wanted", node, place) == self.model.wanted(node, place)

    def gives_back(self, a: int, b: int) -> None:
        places = sorted(self.model.places)
        node = self.conductor(places[b % len(places)] if places else "", a)
        found = self.call("left_alone", node, places, b % 4 == 0)
        assert {place for (place,) in found} == self.model.left_alone(node, places, even_pending=b % 4 == 0)

    # Messages

    def accepts(self, a: int, b: int) -> None:
        node, new, claims = self.node(a), self.new(b), a % 3 > 0
        ((number, is_new, _, state, owner, before),) = self.call(
            *("accept", new.place, 1, "main", new.session, None, None, None, b"1", b"null", new.key, b"", new.repeat),
            *(False, None, None, next(_tokens), node, claims),
        )
        expected = self.model.accept(number, node, new, claims=claims)
        assert (number, is_new, state, owner, set(before or ())) == expected

    def begins(self, a: int, b: int) -> None:
        """A run of a session begins with what waits there, or one with a message of no session."""
        session, nonce = SESSIONS[b % 3], next(_tokens)
        place = None if session is None else f"s:{session}"
        state = (S.ACCEPTED, S.ACCEPTED, S.PARKED, S.STARTED)[b % 4]
        ids = [
            number
            for number, row in self.model.messages.items()
            if row.state is state and (row.place == place or (place is None and is_alone(row.place)))
        ]
        ids = ids[:1] if place is None else ids[: 1 + a % 2]
        if place is None and not ids:
            return
        node = self.of(ids[0], a) if ids else self.conductor(place or "", a)
        found = self.value("started", node, place, nonce, ids, True) if ids else self._conducts(node, place, nonce)
        assert found == self.model.started(node, place, nonce, ids)
        if place is not None and found is not None and found > 0:
            self.runs.append(Run(place, node, found, nonce))
            self.calls[self.runs[-1]] = 0

    def _conducts(self, node: int, place: str | None, nonce: int) -> Any:
        text = "select {s}.started(%s, %s, %s::bigint, array[]::bigint[], true)"
        return self.caller.sql(text, node, place, nonce)[0][0]

    def waits_again(self, a: int, b: int) -> None:
        if (message := self.message(b, S.STARTED)) is not None:
            self.call("waits_again", self.of(message, a), [message])
            self.model.waits_again(self.of(message, a), [message])

    def ends(self, a: int, b: int) -> None:
        if (message := self.message(b, S.STARTED, S.PARKED)) is None:
            return
        node, state = self.of(message, a), ENDS[b % len(ENDS)]
        found = self.value("ended", node, [message], state, "", None, list(MAY_BECOME[state]), next(_tokens))
        assert found == self.model.ended(node, [message], state)

    def refuses(self, a: int, b: int) -> None:
        if (message := self.message(b, S.ACCEPTED)) is not None:
            found = self.value("refused", self.of(message, a), message, "full", list(MAY_BECOME[S.DROPPED]))
            assert found == self.model.refused(self.of(message, a), message)

    def is_requeued(self, _a: int, b: int) -> None:
        if (message := self.message(b, S.PARKED, S.DROPPED, S.UNKNOWN)) is not None:
            assert self.value("again", message, next(_tokens)) == self.model.again(message)

    def cancels(self, a: int, b: int) -> None:
        node, session = self.node(a), SESSIONS[b % 3]
        found = self.call("cancelled", node, None, session, "stopped", next(_tokens), None, None)
        assert {one for (one,) in found} == self.model.cancelled(node, session)

    def puts_right(self, a: int, b: int) -> None:
        if (message := self.message(b, S.STARTED)) is not None:
            ((again, unknown),) = self.call("recovered", self.of(message, a), None, [message], next(_tokens))
            assert (again, unknown) == self.model.recovered(self.of(message, a), (), [message])

    def tells(self, _a: int, b: int) -> None:
        if (message := self.message(b, S.UNKNOWN)) is not None:
            self.caller.sql("update {s}.message set told = true where id = %s", message)
            self.model.messages[message].told = True

    # Questions

    def asks(self, _a: int, b: int) -> None:
        name, session = f"q{next(_tokens)}", SESSIONS[b % 3]
        text = (
            "insert into {s}.ask (id, lane, session, route, question, keep, asked_at, state) "
            "values (%s, 'main', %s, 'null', '1', 'null', now(), 'open')"
        )
        self.caller.sql(text, name, session)
        self.model.asks[name] = (session, "open")

    def ask(self, n: int) -> str | None:
        known = list(self.model.asks)
        return known[-1 - n % min(2, len(known))] if known else None

    def waits_for(self, a: int, b: int) -> None:
        message, ask = self.message(b, S.STARTED), self.ask(a)
        if message is None or ask is None:
            return
        states = list(MAY_BECOME[S.WAITING]), list(MAY_BECOME[S.DONE])
        found = self.value("waits_for", self.of(message, a), [message], ask, "asked", *states, next(_tokens))
        assert found == self.model.waits_for(self.of(message, a), [message], ask)

    def answers(self, a: int, b: int) -> None:
        if (ask := self.ask(b)) is None:
            return
        node, session, claims = self.node(a), self.model.asks[ask][0], b % 3 > 0
        place = f"m:{next(_tokens)}" if session is None else f"s:{session}"
        found = self.call(
            *("answered", ask, "answered", b"1", "ann", place, 1, "main", session, b"1", b"null", f"answer:{ask}", 0),
            *(next(_tokens), node, claims),
        )
        new = Kept(place, session, f"answer:{ask}", repeat=0)
        number = found[0][0] if found else 0
        assert self.model.answered(ask, number, node, new, claims=claims) == (number or None)

    def withdraws(self, _a: int, b: int) -> None:
        session = SESSIONS[b % 2]
        assert session is not None
        self.call("withdrawn", session, "reset")
        self.model.withdrawn(session)

    # Transcripts

    def appends(self, a: int, b: int) -> None:
        if (found := self.of_a_run(a)) is None:
            return
        run, ids = found
        call = max(1, self.calls[run] + (1, 1, 1, 1, 0, 2)[a % 6])
        lines = ["{}"] * (1 + b % 2)
        identity = (run.place, run.node, run.fence, run.nonce, call, None, lines)
        if b % 3 == 0 and ids:
            code = self.call("finish", *identity, ids, list(MAY_BECOME[S.DONE]), None)[0][0]
            assert code == self.model.finish(run, call, len(lines), ids)
        else:
            code = self.call("append", *identity)[0][0]
            assert code == self.model.append(run, call, len(lines))
        if code == "ok":
            self.calls[run] = call

    def notes(self, a: int, b: int) -> None:
        place = f"s:{SESSIONS[b % 2]}"
        code = self.call("note", place, self.node(a), next(_tokens), None, ["{}"])[0][0]
        assert code == self.model.note(place, self.node(a), 1)

    def is_put_away(self, a: int, _b: int) -> None:
        if (found := self.of_a_run(a)) is not None:
            run, _ = found
            code = self.call("put_away", run.place, run.node, run.fence, run.nonce, True, next(_tokens))[0][0]
            assert code == self.model.put_away(run)


OFTEN = ("accepts", "begins", "appends", "ends")
OPS = [
    *(OFTEN * 4),
    *("joins", "falls_silent", "reaps", "leaves", "claims", "claims_what_is_untold", "wants", "gives_back"),
    *("waits_again", "refuses", "is_requeued", "cancels", "puts_right", "tells", "asks", "waits_for"),
    *("answers", "withdraws", "notes", "is_put_away", "falls_silent", "reaps", "gives_back", "asks", "waits_for"),
    "dies_in_the_middle",
]


def play(caller: Caller, seed: int) -> None:
    """One example. What was called until then is in the error: it may be played again by its seed."""
    rng = random.Random(seed)
    played = list[tuple[str, int, int, bool]]()
    with caller.connection.transaction(force_rollback=True):
        play = Play(caller)
        try:
            for _ in range(STEPS):
                played.append((rng.choice(OPS), rng.randrange(12), rng.randrange(12), rng.random() < 0.5))
                play.do(*played[-1])
            assert caller.sql(SOUND) == []
        except Exception as error:
            error.add_note(f"seed {seed}: {played}")
            raise


@pytest.mark.failure("G18", "G19")
def test_nothing_tells_the_database_from_its_model(caller):
    for seed in range(EXAMPLES):
        play(caller, seed)
