"""From a form to an order of the protocol, and the page that shows what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

import msgspec

from ..status import protocol

Form = Mapping[str, str]


class BadForm(ValueError):
    """A form asks for nothing that is known."""


def order_of(form: Form, by: str) -> tuple[protocol.Question, str]:
    """What a form asks for, and the page to go to.

    Raises:
        BadForm: nothing that is known; the message is one line.
    """
    make = _ORDERS.get(form.get("do", ""))
    if make is None:
        raise BadForm(f"do: not allowed; allowed: {', '.join(_ORDERS)}")
    question, to = make(form, by)
    try:
        return protocol.question_of(protocol.encoded(question)), to
    except protocol.BadQuestion as error:
        raise BadForm(str(error)) from error


def _stop(form: Form, _by: str) -> tuple[protocol.Question, str]:
    run, reason = number_of(form, "run"), form.get("reason", "").strip() or "stopped by an operator"
    return protocol.Stop(run=run, reason=protocol.text(reason, 1001)), f"run?id={run}"


def _supersede(form: Form, _by: str) -> tuple[protocol.Question, str]:
    run, reason = number_of(form, "run"), form.get("reason", "").strip() or "superseded by an operator"
    return protocol.Supersede(run=run, reason=protocol.text(reason, 1001)), f"run?id={run}"


def _resubmit(form: Form, _by: str) -> tuple[protocol.Question, str]:
    return protocol.Resubmit(run=number_of(form, "run")), "parked"


def _discard(form: Form, _by: str) -> tuple[protocol.Question, str]:
    return protocol.Discard(run=number_of(form, "run")), "parked"


def _reset(form: Form, _by: str) -> tuple[protocol.Question, str]:
    key = protocol.text(form.get("key", ""), 1025)
    return protocol.Reset(key=key), f"session?key={quote(key, safe='')}"


def _note(form: Form, _by: str) -> tuple[protocol.Question, str]:
    key = protocol.text(form.get("key", ""), 1025)
    note = protocol.Note(
        key=key, text=protocol.text(form.get("text", "").strip(), 8001), role=form.get("role", "").strip() or "note"
    )
    return note, f"session?key={quote(key, safe='')}"


def _answer(form: Form, by: str) -> tuple[protocol.Question, str]:
    given = form.get("value")
    value = msgspec.json.encode(form.get("text", "")) if given is None else given.encode()
    try:
        msgspec.json.decode(value)
    except ValueError:
        raise BadForm("value: no JSON") from None
    return protocol.AnswerAsk(id=protocol.text(form.get("id", "")), value=msgspec.Raw(value), by=by), "asks"


def _requeue(form: Form, _by: str) -> tuple[protocol.Question, str]:
    return protocol.Requeue(message=number_of(form, "message")), _inbox(form)


def _drop(form: Form, _by: str) -> tuple[protocol.Question, str]:
    return protocol.Drop(message=number_of(form, "message")), _inbox(form)


def _inbox(form: Form) -> str:
    return f"inbox?state={quote(form.get('state', ''), safe='')}"


def number_of(form: Form, name: str) -> int:
    """A number of a run or a message.

    Raises:
        BadForm: it is none.
    """
    found = form.get(name, "")
    if not found.isascii() or not found.isdigit() or not 1 <= len(found) <= 19:
        raise BadForm(f"{name}: no number; allowed: a whole number from 1")
    return int(found)


_ORDERS: dict[str, Callable[[Form, str], tuple[protocol.Question, str]]] = {
    "stop": _stop,
    "supersede": _supersede,
    "resubmit": _resubmit,
    "discard": _discard,
    "reset": _reset,
    "note": _note,
    "answer": _answer,
    "requeue": _requeue,
    "drop": _drop,
}
