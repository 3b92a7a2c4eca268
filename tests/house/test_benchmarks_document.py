"""docs/benchmarks.md: what `make bench-docs` writes into it."""

from __future__ import annotations

import pytest

from benchmarks.document import DOCUMENT, choices, sections, table, written
from benchmarks.measure import Figure
from runtime.bench.questions import QUESTIONS
from runtime.bench.results import Answer, Result, Row

PLACE = "before\n<!-- it: written by make bench-docs -->\nold\n<!-- end of it -->\nafter\n"


def test_a_place_of_the_document_is_rewritten_and_the_rest_stays():
    new = written(PLACE, "it", ["a", "b", ""])
    assert new == "before\n<!-- it: written by make bench-docs -->\n\na\nb\n\n<!-- end of it -->\nafter\n"
    assert written(new, "it", ["a", "b"]) == new
    with pytest.raises(ValueError, match="no place for them"):
        written(PLACE, "them", [])


def test_the_table_has_goal_measured_best_peer_and_floor():
    def rows(peer, backend, x, *samples):
        return Row(peer, backend, "handoff p50", x, list(samples))

    answer = Answer(
        "How long?",
        "ms",
        "lower",
        floor="flock",
        x="processes",
        rows=[
            rows("flock", "blocking", 2.0, 0.1, 0.2),
            rows("flock", "blocking", 8.0, 0.2),
            rows("flock", "blocking", 16.0, 0.4),
            rows("slow", "blocking", 8.0, 50.0),
            rows("another loop", "asyncio", 8.0, 5.0),
            rows("lanes-no-lock-file", "trio", 8.0, 0.3),
            rows("lanes", "trio", 2.0, 0.3, 0.8),
            rows("lanes", "trio", 4.0, 0.5),  # neither the largest, nor one with a goal
            rows("lanes", "trio", 16.0, 0.8),
            rows("lanes", "trio", 8.0, 0.6),
        ],
    )
    result = Result(
        started="2026-01-02T03:04",
        machine={"processor": "fast", "load_before": 0.1},
        versions={"python": "3"},
        budget_s=1,
        questions={"handoff": answer},
    )
    bounds = {"locks": [Figure("a ratio", 2.5, "×", 2.0), Figure("  of these", 5, "", 5, True), Figure("b", 1.0, "s")]}
    measured, _, _, _, *lines = table(result, bounds)
    assert measured == "Questions measured 2026-01-02: 3, processor fast, load before 0.1."
    assert lines == [
        "| [handoff](#handoff), handoff p50, 2 processes, trio | ≤ 0.4 ms | 0.55 ms, 3.5 × |  | flock: 0.15 ms |",
        "| [handoff](#handoff), handoff p50, 16 processes, trio |  | 0.8 ms, 2 × |  | flock: 0.4 ms |",
        "| [handoff](#handoff), handoff p50, 8 processes, trio | ≤ 0.7 ms | 0.6 ms, 3 × "
        "| slow: 50 ms, 250 × | flock: 0.2 ms |",
        "| `locks`: a ratio | ≤ 2 × | 2.5 ×, **missed** |  |  |",
        "| `locks`: … of these | ≥ 5 | 5 |  |  |",
    ]


def test_the_document_has_its_places_and_a_section_of_each_question():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text, "the questions", sections(DOCUMENT.with_suffix(""))) == text, (
        "run python -m benchmarks.document"
    )
    assert written(text, "the choices", choices()) == text, "run python -m benchmarks.document"
    assert all(f"\n### {question.name}\n" in text for question in QUESTIONS)
    assert "| question or bound | goal | measured | best peer | floor |" in text
