"""Writes what docs/benchmarks.md says of figures: `python -m benchmarks.document`, the last step of `make bench-docs`.

It reads `docs/benchmarks/bench.json`, made by `lanes bench`, and `bounds-SUITE.json` there, made by
`python -m benchmarks SUITE FILE`. The document has places between marks: the choices, the
table, and a section per question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import msgspec

from runtime.bench.explain import CHOICES, explained
from runtime.bench.questions import QUESTIONS
from runtime.bench.results import Result, Row, load
from runtime.bench.summary import lines
from runtime.bench.text import number

from .measure import Figure

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

_WIDTH = 126

GOALS: Mapping[tuple[str, str], str] = {
    ("cost", "asyncio"): "≤ 1.5 ×",
    ("cost", "trio"): "≤ 2.5 ×",
    ("waiters", "1000"): "≤ 1.8 × asyncio.Lock",
    ("handoff p50", "2"): "≤ 0.4 ms",
    ("handoff p50", "8"): "≤ 0.7 ms",
    ("processes", "8"): "≥ 0.7 ×",
    ("shares", "most holds ÷ fewest"): "≤ 1.1",
    ("job", "asyncio"): "≤ 1.4 ×",
    ("job", "trio"): "≤ 1.2 ×",
    ("story-86004", "messages lost"): "0",
    ("story-86004", "late writes"): "0",
    ("story-86014", "messages lost"): "0",
    ("story-86014", "late writes"): "0",
}
"""What this project wants: by question or metric, and by size, metric or event loop. × are ratios to the floor."""


def table(result: Result, bounds: Mapping[str, Sequence[Figure]]) -> Iterator[str]:
    """The machine, and the lines of the table: each question, then each bound."""
    machine = [f"{name.replace('_', ' ')} {value}" for name, value in result.machine.items()]
    yield f"Questions measured {result.started[:10]}: {', '.join([*result.versions.values()][:1] + machine)}."
    yield ""
    yield "| question or bound | goal | measured | best peer | floor |"
    yield "|---|---|---|---|---|"
    for line in lines(result, also=lambda name, row: bool(_goal(name, row))):
        subject = f"[{line.question}](#{line.question}), {line.subject}"
        yield _line(subject, _goal(line.question, line.own), line.measured, line.best, line.floor)
    for suite, figures in bounds.items():
        for figure in figures:
            if figure.bound is not None:
                yield _bound(suite, figure)


def sections(directory: Path) -> Iterator[str]:
    """The lines of the sections: what each question asks, its picture, and why the answer is what it is."""
    for question in QUESTIONS:
        text = explained(question.name)
        yield f"### {question.name}"
        yield ""
        yield from wrap(f"**{question.title}** {text.asks}", _WIDTH)
        yield ""
        if (directory / f"{question.name}.svg").exists():
            yield f"![{question.title}]({directory.name}/{question.name}.svg)"
            yield ""
        yield from wrap(text.why, _WIDTH)
        yield ""


def choices() -> Iterator[str]:
    """What to choose, with links to the sections of the questions."""
    for situation, choice in CHOICES.items():
        linked = re.sub(r"\[([\w-]+)\]", r"([\1](#\1))", choice)
        yield from wrap(f"- **{situation}**: {linked}", _WIDTH, subsequent_indent="  ", break_long_words=False)


def written(document: str, place: str, content: Iterable[str]) -> str:
    """The document with other lines between the marks of a place.

    Raises:
        ValueError: the marks are missing.
    """
    before, begin, rest = document.partition(f"<!-- {place}: written by make bench-docs -->\n")
    _, end, after = rest.partition(f"<!-- end of {place} -->")
    if not (begin and end):
        raise ValueError(f"the document has no place for {place}")
    return before + begin + "\n" + "\n".join(content).rstrip() + "\n\n" + end + after


def _bound(suite: str, figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    goal = f"{'≥' if figure.at_least else '≤'} {figure.bound:g}{unit}"
    missed = "" if figure.reached else ", **missed**"
    indented = "… " if figure.name.startswith(" ") else ""
    return _line(f"`{suite}`: {indented}{figure.name.strip()}", goal, f"{number(figure.value)}{unit}{missed}")


def _line(*cells: str) -> str:
    return "| " + " | ".join([*cells, "", ""][:5]) + " |"


def _goal(name: str, row: Row) -> str:
    parts = ("" if row.x is None else f"{row.x:g}", row.metric, row.backend)
    return next((GOALS[key, part] for key in (name, row.metric) for part in parts if (key, part) in GOALS), "")


def main(document: Path = DOCUMENT) -> None:
    """Write all places of the document."""
    directory = document.with_suffix("")
    bounds = {
        path.stem.removeprefix("bounds-"): msgspec.json.decode(path.read_bytes(), type=list[Figure])
        for path in sorted(directory.glob("bounds-*.json"))
    }
    text = document.read_text(encoding="utf-8")
    text = written(text, "the table", table(load(str(directory / "bench.json")), bounds))
    text = written(text, "the choices", choices())
    text = written(text, "the questions", sections(directory))
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
