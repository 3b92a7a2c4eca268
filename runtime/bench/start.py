"""`lanes bench`: checks what it was asked for, measures, prints and writes."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..trial.output import Output
from ..usage_error import UsageError
from . import compare, illustrate, results, text
from .machine import machine, versions
from .measure import OURS, Measuring, Progress
from .peers import PEERS
from .peers.interface import Peer
from .questions import QUESTIONS
from .questions.interface import Question, Scale

BUDGET_S, FULL_BUDGET_S = 270.0, 3_600.0
_LONGEST_BUDGET_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, parsed."""

    questions: Sequence[str] = ()
    peers: str | None = None
    source: str | None = None
    html: str | None = None
    pictures: str | None = None
    json: str | None = None
    compare: str | None = None
    budget: float | None = None
    full: bool = False
    list: bool = False


def run(options: Options) -> int:
    """Measure; returns the exit code.

    Raises:
        UsageError: this is not Linux, a question or peer is unknown, a file cannot be read or written, or the budget
            is no time; nothing was measured.
    """
    output = Output(json=False)
    if options.list:
        for line in _listing():
            output.result(line)
        return int(output.failed)
    if options.source is None and platform.system() != "Linux":
        raise UsageError(f"lanes bench: {platform.system()} is not supported; measuring needs Linux")
    questions = _questions(options)
    peers = _peers(options, questions)
    budget_s = _budget_s(options)
    old = None if options.compare is None else results.load(options.compare)
    found = None if options.source is None else _loaded(options, options.source)
    for name in ("json", "html"):
        _check_writable(f"--{name}", getattr(options, name))
    if options.pictures is not None:
        illustrate.check_directory("--pictures", options.pictures)
    if found is not None:
        _show(options, found, old, output)
        return int(output.failed)
    result = results.Result(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions(),
        argv=sys.argv[1:],
        budget_s=budget_s,
    )
    cut_short = False
    with _terminable() as received, _progress() as progress:
        try:
            Measuring(result, peers, Scale(options.full), progress).run(questions)
        except KeyboardInterrupt:
            cut_short = True
    if cut_short:  # what was measured until then is still worth printing
        later = [question.name for question in questions if question.name not in result.questions]
        result.left_out += [results.LeftOut(name, "all", "cut short") for name in later]
    _show(options, result, old, output)
    if cut_short:
        return 128 + (received[0] if received else signal.SIGINT)
    return int(output.failed or not any(True for _ in result.rows()) or _ours_violated(result))


def _show(options: Options, result: results.Result, old: results.Result | None, output: Output) -> None:
    """Print the result, and write the files that were asked for: the samples first, which cannot be had again."""
    if options.json is not None:
        Path(options.json).write_bytes(results.encode(result))
    for part in text.report(result):
        output.result(part + "\n")
    if old is not None:
        output.result("\n".join(compare.lines(old, result)))
    if options.html is not None:
        output.line(illustrate.write_page(options.html, result))
    if options.pictures is not None:
        output.line(illustrate.write_pictures(options.pictures, result))


def _loaded(options: Options, source: str) -> results.Result:
    """The figures of an earlier run. What would choose what to measure is refused beside it."""
    for option, given in {
        "QUESTION": options.questions,
        "--peers": options.peers,
        "--budget": options.budget,
        "--full": options.full,
    }.items():
        if given:
            raise UsageError(f"--from: nothing is measured then, so {option} is not allowed beside it")
    return results.load(source)


def _ours_violated(result: results.Result) -> bool:
    return any(row.violations and row.peer in OURS for _, _, row in result.rows())


def _questions(options: Options) -> list[Question]:
    by_name = {question.name: question for question in QUESTIONS}
    for name in options.questions:
        if name not in by_name:
            raise UsageError(f"QUESTION: {name!r} is unknown; allowed: {', '.join(by_name)}")
    if options.questions:
        return [question for question in QUESTIONS if question.name in options.questions]
    return [question for question in QUESTIONS if options.full or not question.only_full]


def _peers(options: Options, questions: Sequence[Question]) -> list[Peer]:
    """The peers asked for, and the floors of the questions: without its floor a peer's figures say little."""
    if options.peers is None:
        return list(PEERS)
    asked = [name.strip() for name in options.peers.split(",") if name.strip()]
    allowed = dict.fromkeys(peer.name for peer in PEERS)
    for name in asked:
        if name not in allowed:
            raise UsageError(f"--peers: {name!r} is unknown; allowed: {', '.join(allowed)}")
    if not asked:
        raise UsageError(f"--peers: {options.peers!r} names no peer; allowed: {', '.join(allowed)}")
    floors = {(question.kind, question.floor) for question in questions}
    return [peer for peer in PEERS if peer.name in asked or (peer.kind, peer.name) in floors]


def _budget_s(options: Options) -> float:
    if options.budget is None:
        return FULL_BUDGET_S if options.full else BUDGET_S
    if not 0 < options.budget <= _LONGEST_BUDGET_S:
        raise UsageError(
            f"--budget: {options.budget!r} is not allowed; allowed: seconds above 0, up to {_LONGEST_BUDGET_S:g}"
        )
    return options.budget


def _check_writable(option: str, path: str | None) -> None:
    """Find out before minutes of measuring. A file that was not there is not left behind."""
    if path is None:
        return
    new = not os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
        if new:
            os.unlink(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{option}: {path}: cannot be written: {reason}") from None


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """Have SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does; gives the list of such signals received."""
    received: list[int] = []

    def terminate(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal's standard error; else a line there as each question begins."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        shown: set[str] = set()

        def tell(question: str, _: float) -> None:
            if question and question not in shown:
                shown.add(question)
                print(f"lanes bench: {question}", file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console  # noqa: PLC0415 -- for a terminal only
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 -- as above
    from rich.progress import Progress as Bar  # noqa: PLC0415 -- as above

    with Bar(
        TextColumn("{task.description:16}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda question, done: bar.update(task, description=question, completed=done)


def _listing() -> Iterator[str]:
    yield "Questions:"
    for question in QUESTIONS:
        full = " (with --full, or by name)" if question.only_full else ""
        yield f"  {question.name:16} {question.title}{full}"
    yield "Peers:"
    for peer in PEERS:
        missing = f" (not installed: {peer.needs})" if peer.missing else ""
        yield f"  {peer.name:24} {peer.kind:8} {peer.about}{missing}"
