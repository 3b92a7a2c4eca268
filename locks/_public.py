"""The name by which users know a class or function: that of the package from which they import it.

Error texts, `repr` and pickles show it. What looks up the annotations of a class by its module, as `help` does for a
`msgspec.Struct`, would look into the package then, which lacks the names that they use; so those are resolved before.
(For all other classes `help` shows annotations as they are written, and to resolve them would slow every import.)
"""

from __future__ import annotations

from typing import Any, get_type_hints


def as_public(thing: Any, package: str) -> None:
    """Have a class or function belong to a package, for everything that asks."""
    if hasattr(thing, "__struct_fields__"):
        thing.__annotations__ = get_type_hints(thing, include_extras=True)
    thing.__module__ = package
