"""A result as text: a table per question, what was left out, and what the peers are."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .peers import PEERS
from .questions import QUESTIONS
from .results import Answer, Result, Row

_WIDTH = 150
_ON_A_LOOP = re.compile(r" \((asyncio|trio)\)$")
_KINDS = {
    "inside": "in one process",
    "between": "between processes",
    "jobs": "jobs",
    "gateway": "a whole gateway",
}


def report(result: Result) -> Iterator[str]:
    """All of it, in pieces of one question each."""
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.machine.items())
    yield f"{result.versions['python']}; {machine}"
    if float(result.machine.get("load_before", 0)) > float(result.machine.get("cores", 1)) / 2:
        yield "The machine was busy when this run began: trust the ratios, not the times."
    yield "Each value: the median of its samples ± half of their range; ×: its ratio to the floor, round by round."
    for name, answer in result.questions.items():
        if answer.rows:
            yield "\n".join(_question(name, answer))
    if result.left_out:
        yield "\n".join(["Left out:", *_left_out(result)])
    yield "\n".join(["Peers:", *(f"  {line}" for line in peers_of(result))])


def _left_out(result: Result) -> Iterator[str]:
    """One line per question and reason, with the peers that have it in common."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in result.left_out:
        why, _, loop = one.why.removesuffix(")").rpartition(" (") if _ON_A_LOOP.search(one.why) else (one.why, "", "")
        found.setdefault((one.question, why), []).append(f"{one.peer} ({loop})" if loop else one.peer)
    for (question, why), peers in found.items():
        yield f"  {question}: {', '.join(peers)}: {why}"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value != 0 and abs(value) < 100:
        return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}"
    return f"{value:,.0f}"


def _question(name: str, answer: Answer) -> Iterator[str]:
    floor = f"; floor: {answer.floor}" if answer.floor else ""
    by = f", by {answer.x}" if answer.x else ""
    yield f"{name}: {answer.title}"
    yield f"({answer.unit}{by}; {answer.better} is better{floor})"
    yield _drawn(_table(answer))
    for row in answer.rows:
        at = "" if row.x is None else f", {row.x:,.0f} {answer.x}"
        subject = f"{row.peer} ({row.backend}{at})"
        if row.violations and row.metric == answer.rows[0].metric:
            yield f"  EXCLUSION VIOLATED: {subject} let another holder in {row.violations:,} times"
    notes: dict[str, list[str]] = {}
    for row in answer.rows:
        if row.note:
            about = notes.setdefault(f"{row.peer}: {row.note}", [])
            about += [name for name in (row.metric,) if name not in about]
    yield from (f"  {note} ({', '.join(about)})" for note, about in notes.items())


def _table(answer: Answer) -> Table:
    metrics = list(dict.fromkeys(row.metric for row in answer.rows if row.samples))
    sizes = sorted({row.x for row in answer.rows if row.x is not None})
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("peer")
    table.add_column("loop")
    if sizes:
        if len(metrics) > 1:
            table.add_column("metric")
        for size in sizes:
            table.add_column(f"{size:,.0f}", justify="right")
    else:
        for metric in metrics:
            table.add_column(metric, justify="right")
    found = {(row.peer, row.backend, row.x, row.metric): row for row in answer.rows}
    for peer, backend in dict.fromkeys((row.peer, row.backend) for row in answer.rows):
        if not sizes:
            table.add_row(peer, backend, *(_cell(answer, found.get((peer, backend, None, name))) for name in metrics))
            continue
        for metric in metrics:
            cells = [_cell(answer, found.get((peer, backend, size, metric))) for size in sizes]
            table.add_row(peer, backend, *([metric] if len(metrics) > 1 else []), *cells)
    return table


def _cell(answer: Answer, row: Row | None) -> str:
    if row is None or row.median is None:
        return "–"
    spread = (max(row.samples) - min(row.samples)) / 2
    ratio = answer.ratio(row)
    value = f"{number(row.median)} ±{number(spread)}" if len(row.samples) > 1 else number(row.median)
    return value if ratio is None else f"{value} {ratio:5.2f}×"


def peers_of(result: Result) -> Iterator[str]:
    """Each peer that was measured, and what it is."""
    kinds = {question.name: question.kind for question in QUESTIONS}
    measured = {(kinds.get(name), row.peer) for name, _, row in result.rows()}
    for peer in PEERS:
        if (peer.kind, peer.name) in measured:
            yield f"{peer.name} ({_KINDS[peer.kind]}): {peer.about}"


def _drawn(table: Table) -> str:
    sink = io.StringIO()
    Console(file=sink, width=_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines() if line.strip())
