"""`lanes status`: what a process does, for an operator in a hurry. Problems come first, then the runs that cause them.

With `--json` it prints the answer of the status socket, one object: `{"status": …}`, or `{"frozen": …}` with exit code
1; its fields are those of `runtime.status.protocol`, and may gain others.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.status import protocol, words
from runtime.status.client import Client

from ..trial.output import Output
from .remote import asked, lasting, printable, talk

_WIDEST = 48
_MOST = 15
_PLACES = 5
"""Of how many healthy runs the line of code is shown; of stuck ones it always is."""


def run(socket: str | None, json: bool) -> int:
    """Ask once, print, and return the exit code.

    Raises:
        UsageError: there is no process to ask.
    """

    def look(client: Client, output: Output) -> None:
        answer = asked(client, protocol.Status())
        assert answer.status is not None
        report = protocol.encoded(answer).decode().rstrip("\n") if json else "\n".join(lines(answer.status))
        output.result(report)

    return talk(socket, look, json=json)


def lines(picture: protocol.Picture, most: int = _MOST) -> list[str]:
    """The whole report, with at most `most` runs of each kind."""
    held_up = words.held_up(picture.runs)
    stuck, healthy, waiting = words.by_state(picture)
    report = head(picture)
    report += _section(
        "STUCK",
        [
            *(
                (*_who(row), f"{words.abandoned(row)}{words.holds_up(row.id, held_up)}", row.at)
                for row in picture.abandoned
            ),
            *((*_who(run), f"{words.stuck(run)}{words.holds_up(run.id, held_up)}", run.at) for run in stuck),
        ],
        most,
        picture.abandoned_left_out,
    )
    report += _section(
        "RUNNING, the longest first",
        [
            (*_who(run), f"{words.runs(run)}{words.holds_up(run.id, held_up)}", run.at if number < _PLACES else "")
            for number, run in enumerate(healthy)
        ],
        most,
    )
    report += _section("WAITING, the longest first", [(*_who(run), words.waits(run), "") for run in waiting], most)
    if picture.runs_left_out:
        report += ["", f"… and {picture.runs_left_out} more runs"]
    return [printable(line) for line in report]


def head(picture: protocol.Picture) -> list[str]:
    """What concerns the whole process."""
    state = "" if picture.state == "running" else f"{picture.state.upper()}, "
    lag = picture.loop_lag
    running, queued = picture.counts.get("running", 0), picture.counts.get("queued", 0)
    abandoned = len(picture.abandoned) + picture.abandoned_left_out
    counts = [f"{running} running", f"{queued} waiting"]
    counts += [f"{number} {what}" for number, what in ((abandoned, "abandoned"), (picture.parked, "parked")) if number]
    groups = (
        f"{group.name} {group.running}/{group.slots}" + (f" ({group.queued} waiting)" if group.queued else "")
        for group in picture.groups
    )
    report = [
        f"process {picture.pid}, {state}running for {lasting(picture.uptime_s)}, generation {picture.generation}, "
        f"sessions {picture.sessions}"
    ]
    report += [f"PROBLEM: {problem}" for problem in picture.problems]
    if picture.admission_slowed:
        report.append(f"SLOWED: {picture.admission_slowed}")
    report.append(f"{', '.join(counts)}; loop lag p99 {lag.p99 * 1000:.1f} ms, at most {lag.max * 1000:.1f} ms")
    report.append(f"slots: {', '.join(groups)}")
    if picture.configured_s_ago is not None:
        changes, more = picture.configured[:_PLACES], len(picture.configured) - _PLACES
        report.append(
            f"configured {lasting(picture.configured_s_ago)} ago: {'; '.join(changes)}"
            + f"; … {more} more" * (more > 0)
        )
    if picture.pools:
        report.append(f"pools: {', '.join(map(_pool, picture.pools))}")
    if picture.inbox is not None:
        report.append(_inbox(picture.inbox))
    if picture.node is not None:
        report.append(_node(picture.node))
    full = [
        f"{lane.name} {lane.running}/{lane.capacity} ({lane.queued} waiting, for {lasting(lane.oldest_wait_s)} at most)"
        for lane in picture.lanes
        if lane.queued and lane.running >= lane.capacity
    ]
    if full:
        report.append(
            f"full lanes: {', '.join(full[:_PLACES])}" + (f", … {len(full) - _PLACES} more" * (len(full) > 5))
        )
    return report


def _pool(pool: protocol.PoolRow) -> str:
    notes = [f"{pool.waiting} waiting, for {lasting(pool.oldest_wait_s)} at most"] if pool.waiting else []
    if pool.paused_for_s:
        notes.append(f"paused for {lasting(pool.paused_for_s)} more")
    if pool.share < 1.0:
        notes.append(f"lowered to {pool.share:.0%}")
    held = f"{pool.name} {pool.held}" + ("" if pool.slots is None else f"/{pool.slots}")
    return f"{held} ({'; '.join(notes)})" if notes else held


def _inbox(inbox: protocol.InboxPart) -> str:
    counts = [f"{number} {state}" for state, number in inbox.messages.items() if number]
    report = f"inbox: {', '.join(counts) or 'nothing waits'}"
    if inbox.messages.get("accepted"):
        report += f"; the oldest was accepted {lasting(inbox.oldest_wait_s)} ago"
    if inbox.on_disk_only:
        report += f"; {inbox.on_disk_only} on disk only"
    if inbox.questions:
        report += f"; questions to a person: {inbox.questions}"
    if inbox.uncommitted:
        report += f"; {inbox.uncommitted} not committed yet"
    return report


def _node(node: protocol.NodePart) -> str:
    if not node.id:
        return f"node {node.name}: lost, and takes nothing until it has joined again"
    report = f"node {node.name}: conducts {node.sessions}, may be silent for {node.lease_left_s:.1f} s"
    return report + f"; {node.reconnects} tried again" * bool(node.reconnects)


def _who(row: protocol.RunRow | protocol.AbandonedRow) -> tuple[str, str]:
    named = row.session is None or row.lane == f"session:{row.session}"
    return f"run {row.id}", row.lane if named else f"{row.lane}, session {row.session}"


def _section(title: str, rows: Sequence[tuple[str, str, str, str]], most: int, left_out: int = 0) -> list[str]:
    if not rows:
        return []
    shown = rows[:most]
    widths = [min(_WIDEST, max(len(row[column]) for row in shown)) for column in (0, 1)]
    report = ["", title]
    for row in shown:
        report.append(f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
        if row[3]:
            report.append(f"  {'':<{widths[0]}}  at {row[3]}")
    left_out += len(rows) - len(shown)
    return [*report, f"  … {left_out} more"] if left_out else report
