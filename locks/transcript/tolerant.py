"""Parsing JSON as Python's `json` takes it, without recursion: for the lines that the fast parser refuses.

The fast parser, msgspec's, is strict, and its recursion uses up the stack of its caller, so it refuses a deep line or
takes it depending on its caller. This one keeps its own stack. It takes what other programs leave in transcripts:
halves of surrogate pairs, as escapes or as bytes, NaN and infinities, numbers that are too large for a float.

Rejected: `json.loads`, which recurses too, and whose limit of digits is a setting of the process.
"""

from __future__ import annotations

import math
import re
from typing import Any

REPLACEMENT = "\ufffd"
"""What stands for half of a surrogate pair."""
_PIECE = 500  # digits at once: no process can be set to allow fewer than 640
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"-?[A-Za-z]+")
_WORDS = {
    "null": None,
    "true": True,
    "false": False,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}
_HALVES = re.compile("[\ud800-\udfff]")


class Refused(ValueError):
    """A text is not JSON, not even to Python; or it exceeds a bound."""


def parse(text: str, *, deepest: int, most_digits: int) -> Any:
    """The value that a text is. Takes as little of the caller's stack for a deep value as for a flat one.

    Half of a surrogate pair becomes U+FFFD. Of a key that stands twice, the last value counts.

    Args:
        text: the whole text; half surrogate pairs may stand in it as such.
        deepest: how many objects and arrays may stand inside each other.
        most_digits: how many digits an integer may have.

    Raises:
        Refused: it is not JSON, or exceeds a bound.
    """
    reader = _Reader(text, most_digits)
    value: Any = None
    around: list[Any] = []  # the objects and arrays that are open, the innermost last
    key = ""  # under which the next value goes, if an object is innermost
    while True:
        new: Any
        opens = True
        if reader.take("{"):
            new = {}
        elif reader.take("["):
            new = []
        else:
            new, opens = reader.scalar(), False
        if not around:
            value = new
        elif isinstance(around[-1], dict):
            around[-1][key] = new
        else:
            around[-1].append(new)
        if opens:
            if len(around) == deepest:
                raise Refused(f"nested more than {deepest} deep")
            if not reader.take(_end_of(new)):
                around.append(new)
                if isinstance(new, dict):
                    key = reader.key()
                continue
        while around and not reader.take(","):
            reader.expect(_end_of(around.pop()))
        if not around:
            reader.expect_end()
            return value
        if isinstance(around[-1], dict):
            key = reader.key()


def _end_of(opened: Any) -> str:
    return "}" if isinstance(opened, dict) else "]"


class _Reader:
    """A place in a text, and what can be taken from there."""

    def __init__(self, text: str, most_digits: int) -> None:
        self._text = text
        self._most_digits = most_digits
        self._at = 0
        """Where the next thing begins, blanks aside."""
        self._skip(0)

    def take(self, char: str) -> bool:
        """Go past a character, if it stands there."""
        if not self._text.startswith(char, self._at):
            return False
        self._skip(self._at + 1)
        return True

    def expect(self, char: str) -> None:
        """Go past a character that has to stand there."""
        if not self.take(char):
            raise self._refused(f"expected `,` or `{char}`")

    def expect_end(self) -> None:
        """See that nothing else follows."""
        if self._at < len(self._text):
            raise self._refused("trailing characters")

    def key(self) -> str:
        """Go past a key and its colon."""
        found = self._string()
        if found is None:
            raise self._refused("object keys must be strings")
        if not self.take(":"):
            raise self._refused("expected `:`")
        return found

    def scalar(self) -> Any:
        """Go past a value that is no object and no array."""
        text = self._string()
        if text is not None:
            return text
        number = _NUMBER.match(self._text, self._at)
        if number is not None:
            self._skip(number.end())
            whole, fraction, exponent = number.groups()
            return self._whole(whole) if fraction is None and exponent is None else float(number[0])
        word = _WORD.match(self._text, self._at)
        if word is None or word[0] not in _WORDS:
            raise self._refused("expected a value")
        self._skip(word.end())
        return _WORDS[word[0]]

    def _string(self) -> str | None:
        found = _STRING.match(self._text, self._at)
        if found is None:
            return None
        import json  # noqa: PLC0415 -- few lines need it, and each import delays the command line

        try:
            text: str = json.loads(found[0])
        except json.JSONDecodeError as error:
            self._at += error.pos
            raise self._refused(f"invalid string: {error.msg}") from error
        self._skip(found.end())
        return text if _HALVES.search(text) is None else _whole_characters(text)

    def _whole(self, digits: str) -> int:
        sign, digits = (-1, digits[1:]) if digits[0] == "-" else (1, digits)
        if len(digits) > self._most_digits:
            raise Refused(f"an integer of more than {self._most_digits} digits")
        value = 0
        for start in range(0, len(digits), _PIECE):
            piece = digits[start : start + _PIECE]
            value = value * 10 ** len(piece) + int(piece)
        return sign * value

    def _skip(self, at: int) -> None:
        space = _SPACE.match(self._text, at)
        assert space is not None
        self._at = space.end()

    def _refused(self, why: str) -> Refused:
        if self._at >= len(self._text):
            return Refused("JSON is malformed: it ends too early")
        return Refused(f"JSON is malformed: {why} (character {self._at})")


def _whole_characters(text: str) -> str:
    """The text with a character for each pair of surrogates, and U+FFFD for each half that stands alone."""
    pairs = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _HALVES.sub(REPLACEMENT, pairs)
