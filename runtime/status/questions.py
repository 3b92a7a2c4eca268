"""The questions of a status socket. A question names itself in `ask`."""

from __future__ import annotations

from typing import Annotated

import msgspec

RunId = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Timeout = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
AskId = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
NoteText = Annotated[str, msgspec.Meta(min_length=1, max_length=8000)]
Role = Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=500)]
RecordedFor = Annotated[float, msgspec.Meta(gt=0, le=600)]
Window = Annotated[float, msgspec.Meta(ge=1, le=86_400)]


class _Question(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", forbid_unknown_fields=True): ...


class Ping(_Question, frozen=True, tag="ping"):
    """Which process is there? Answered also while the event loop is frozen."""


class Status(_Question, frozen=True, tag="status"):
    """What does it do?"""

    each: Rows | None = None
    """At most so many running runs, and as many waiting ones; by default as many runs as fit a page."""


class Stop(_Question, frozen=True, tag="stop"):
    """Ask a run to end."""

    run: RunId
    reason: Reason = "stopped by an operator"


class Supersede(_Question, frozen=True, tag="supersede"):
    """Ask a run to end as if a newer message of its session had taken its place: that is what its sender is told."""

    run: RunId
    reason: Reason = "superseded by an operator"


class Drain(_Question, frozen=True, tag="drain"):
    """Take nothing more, let running runs finish for `timeout` seconds (or the supervisor's own), cancel the rest."""

    timeout: Timeout | None = None


class Restart(_Question, frozen=True, tag="restart"):
    """Replace this generation by the next one, in the same process; what is queued is kept."""


class Stack(_Question, frozen=True, tag="stack"):
    """Where does a run stand?"""

    run: RunId


class Trends(_Question, frozen=True, tag="trends"):
    """How have the loop's lag and what the process uses been?"""


class Timeline(_Question, frozen=True, tag="timeline"):
    """What ran when, in the last `window_s` seconds, as far as it is kept?"""

    window_s: Window = 300.0


class Session(_Question, frozen=True, tag="session"):
    """Who conducts a session, who waits, and what stands at the end of its transcript?"""

    key: Key
    content: bool = False
    """Whether to answer with what people have written; else without."""


class Reset(_Question, frozen=True, tag="reset"):
    """Start a session afresh: end its runs, and put its file aside."""

    key: Key


class Parked(_Question, frozen=True, tag="parked"):
    """Which runs have failed for the last time, and wait for an operator?"""

    content: bool = False


class Resubmit(_Question, frozen=True, tag="resubmit"):
    """Submit what a parked run was to do once more."""

    run: RunId


class Discard(_Question, frozen=True, tag="discard"):
    """Forget a parked run."""

    run: RunId


class Asks(_Question, frozen=True, tag="asks"):
    """Which questions wait for a person?"""

    content: bool = False


class AnswerAsk(_Question, frozen=True, tag="answer"):
    """Answer a question that waits for a person."""

    id: AskId
    value: msgspec.Raw
    """Any JSON."""
    by: str = ""


class Messages(_Question, frozen=True, tag="messages"):
    """Which messages of the inbox are in a state? The oldest first."""

    state: str
    content: bool = False


class Requeue(_Question, frozen=True, tag="requeue"):
    """Have a message wait again that was parked, dropped or left unknown."""

    message: RunId


class Drop(_Question, frozen=True, tag="drop"):
    """Have a message that is parked, unknown or waits for a person wait no longer."""

    message: RunId


class End(_Question, frozen=True, tag="end"):
    """End all runs of a session, which another process resets, and have them write nothing to it any more."""

    key: Key


class Post(_Question, frozen=True, tag="post"):
    """Take a message for a session that is conducted here, which has come to another process on the directory."""

    lane: str
    session: Key
    body: msgspec.Raw
    """Any JSON, as the route."""
    route: msgspec.Raw
    timeout: float | None = None
    priority: str | None = None
    when_busy: str | None = None
    dedupe: str | None = None


class Life(_Question, frozen=True, tag="life"):
    """What has a run lived through, what belongs to it, and what does it emit while somebody looks?"""

    run: RunId
    content: bool = False
    """Whether to answer with what it emits; else with how much."""


class Note(_Question, frozen=True, tag="note"):
    """Append a record to a session, whoever conducts it: `{"role": …, "content": …, "by": …}`."""

    key: Key
    text: NoteText
    role: Role = "note"


class Ended(_Question, frozen=True, tag="ended"):
    """How has a run ended that was posted from another process, if it has?"""

    run: RunId


class Record(_Question, frozen=True, tag="record"):
    """Record what runs when, from now on, for so many seconds."""

    seconds: RecordedFor = 10.0


class Recorded(_Question, frozen=True, tag="recorded"):
    """The next part of what was recorded. A recording of which no part is asked for in ten seconds ends."""

    recording: RunId


Question = (
    Ping
    | Status
    | Stop
    | Drain
    | Restart
    | Stack
    | Trends
    | Timeline
    | Session
    | Reset
    | Parked
    | Resubmit
    | Discard
    | Asks
    | AnswerAsk
    | Messages
    | Requeue
    | Drop
    | End
    | Post
    | Ended
    | Record
    | Recorded
    | Life
    | Note
    | Supersede
)
Slow = Session | Reset | Asks | AnswerAsk | Messages | Requeue | Drop | Note
"""Those that are answered by a coroutine, since a disk or a database is asked."""
