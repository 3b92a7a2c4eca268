"""The queue of effects: what a change of state sets off runs after the outermost change, once each, in order."""

from __future__ import annotations

import threading

import pytest
import structlog
from structlog.testing import capture_logs

from locks import _effects
from locks._events import log


class Notes:
    """Changes that note what they do, and what they set off."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @_effects.change
    def change(self, name, *inner):
        self.seen.append(f"{name} begins")
        _effects.after(self.seen.append, f"effect of {name}")
        for call in inner:
            call()
        self.seen.append(f"{name} ends")


@pytest.fixture
def notes():
    yield Notes()
    assert not _effects._local.effects.noted and _effects._local.effects.depth == 0


def test_effects_run_in_order_when_the_outermost_change_is_complete(notes):
    notes.change("outer", lambda: notes.change("inner"), lambda: _effects.after(notes.seen.append, "last"))
    assert notes.seen == [
        *("outer begins", "inner begins", "inner ends", "outer ends"),
        *("effect of outer", "effect of inner", "last"),
    ]


def test_what_an_effect_changes_sets_off_effects_behind_all_others(notes):
    @_effects.change
    def outer():
        _effects.after(notes.change, "first")
        _effects.after(notes.seen.append, "second")

    outer()
    assert notes.seen == ["first begins", "first ends", "second", "effect of first"]


def test_outside_of_a_change_an_effect_runs_at_once(notes):
    _effects.after(notes.seen.append, "now")
    assert notes.seen == ["now"]


def test_effects_run_though_the_change_has_raised(notes):
    @_effects.change
    def fails():
        _effects.after(notes.seen.append, "told all the same")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert notes.seen == ["told all the same"]


def test_an_interrupt_in_an_effect_leaves_the_change_when_all_others_have_run(notes):
    def interrupt():
        raise KeyboardInterrupt

    @_effects.change
    def outer():
        _effects.after(interrupt)
        _effects.after(notes.change, "rest")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert notes.seen == ["rest begins", "rest ends", "effect of rest"]


def test_a_finalizer_runs_when_the_change_is_complete(notes):
    class Kept:
        def __del__(self):
            notes.change("finalizer")

    held = [Kept()]

    @_effects.change
    def outer():
        _effects.release(held.pop())
        notes.seen.append("outer ends")

    outer()
    assert notes.seen == ["outer ends", "finalizer begins", "finalizer ends", "effect of finalizer"]


def test_each_thread_has_a_queue_of_its_own(notes):
    @_effects.change
    def outer():
        thread = threading.Thread(target=notes.change, args=("thread",))
        thread.start()
        thread.join()
        notes.seen.append("outer ends")

    outer()
    assert notes.seen == ["thread begins", "thread ends", "effect of thread", "outer ends"]


def test_a_mark_goes_along_with_what_a_block_sets_off_and_with_nothing_else(notes):
    def look(name):
        notes.seen.append(f"{name}: {_effects.is_marked('mark')}")

    @_effects.change
    def further():
        _effects.after(look, "set off in turn")

    @_effects.change
    def outer():
        with _effects.marked("mark"):
            _effects.after(look, "within")
            _effects.after(further)
        _effects.after(look, "behind")

    outer()
    look("later")
    assert notes.seen == ["within: True", "behind: False", "set off in turn: True", "later: False"]


def test_a_chain_of_effects_without_an_end_is_refused(notes):
    lengths = []

    @_effects.change
    def again(length):
        _effects.refuse_endless("again")
        lengths.append(length)
        _effects.after(contained, length + 1)

    def contained(length):
        try:
            again(length)
        except RecursionError as error:
            notes.seen.append(str(error))

    again(0)
    assert len(lengths) == 100
    assert notes.seen == ["again from a hook that was called for what a hook did, 100 times over"]


def test_what_an_interrupt_has_left_is_run_by_the_next_change(notes):
    @_effects.change
    def outer():
        _effects.after(notes.seen.append, "left")
        _effects._local.effects.running = True  # as if the queue was being run: the interrupt comes in between

    outer()
    assert notes.seen == []
    _effects.recover()
    assert notes.seen == ["left"]


def test_a_log_line_is_written_after_the_change(notes):
    @_effects.change
    def outer():
        log("something_happened", n=1)
        notes.seen.append(f"{len(logs)} lines")

    with capture_logs() as logs:
        outer()
    assert notes.seen == ["0 lines"]
    assert logs == [{"event": "something_happened", "n": 1, "log_level": "info"}]


def test_a_log_processor_may_change_things(notes):
    def processor(logger, name, event):
        if event["event"] == "outer_changed":
            notes.change("processor")
        raise structlog.DropEvent

    @_effects.change
    def outer():
        log("outer_changed")
        notes.seen.append("outer ends")

    before = structlog.get_config()
    structlog.configure(processors=[processor])
    try:
        outer()
    finally:
        structlog.configure(**before)
    assert notes.seen == ["outer ends", "processor begins", "processor ends", "effect of processor"]
