"""The public face is explicit: every name in `__all__` exists, is the package's own, is typed and documented."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

PACKAGES = ("locks", "lanes", "runtime")
FACES = (*PACKAGES, "lanes.testing")


def listed(source: str) -> list[str] | None:
    """The names in the literal `__all__` of a module; `None` if it has no such thing."""
    for node in ast.parse(source).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() as value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.List() as value)
            ) if all(isinstance(one, ast.Constant) for one in value.elts):
                names = ast.literal_eval(value)
                assert isinstance(names, list)
                return names
    return None


def in_order(names: list[str]) -> list[str]:
    """The order that ruff keeps: constants, classes, the rest."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[:1].isupper() else 2, name))


def faults(package: types.ModuleType, names: list[str]) -> list[str]:
    """What is wrong with the public names of `package`."""
    found = []
    for name in names:
        if not hasattr(package, name):
            found.append(f"{package.__name__}.{name}: does not exist")
            continue
        thing = getattr(package, name)
        found += [f"{package.__name__}.{name}{fault}" for fault in _faults_of(thing, package.__name__)]
    return found


def _faults_of(thing: Any, package: str) -> Iterator[str]:
    if not isinstance(thing, type | types.FunctionType):
        return  # a constant or an alias: it has no documentation of its own, and its type is inferred
    if thing.__module__ != package:
        yield f": __module__ is {thing.__module__!r}"
    if not _own_doc(thing):
        yield ": no docstring"
    if isinstance(thing, types.FunctionType):
        yield from _unannotated(thing)
        return
    for name, member in _public_members(thing):
        for function in _functions_of(member):
            if not inspect.getdoc(function):
                yield f".{name}: no docstring"
            yield from (f".{name}{fault}" for fault in _unannotated(function))
    init = inspect.getattr_static(thing, "__init__")
    if isinstance(init, types.FunctionType) and _is_ours(init.__module__):
        yield from (f".__init__{fault}" for fault in _unannotated(init))


def _own_doc(thing: Any) -> str | None:
    doc = thing.__doc__
    # What dataclasses and named tuples write about themselves is a signature.
    return None if doc is None or doc.startswith(f"{thing.__name__}(") else doc


def _public_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Members of a class and of those of its bases that are this project's."""
    seen: set[str] = set()
    for base in cls.__mro__:
        # `__module__` of a public class is the package's name, and of a private base the module's: ours, either way.
        if _is_ours(base.__module__):
            for name, member in vars(base).items():
                if not name.startswith("_") and name not in seen:
                    seen.add(name)
                    yield name, member


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in {*PACKAGES, __name__.partition(".")[0]}


def _functions_of(member: Any) -> list[Callable[..., Any]]:
    match member:
        case types.FunctionType():
            return [member]
        case staticmethod() | classmethod():
            return [member.__func__]
        case property():
            return [member.fget] if member.fget is not None else []
        case functools.cached_property():
            return [member.func]
    return []


def _unannotated(function: Callable[..., Any]) -> Iterator[str]:
    function = inspect.unwrap(function)
    signature = inspect.signature(function)
    for index, parameter in enumerate(signature.parameters.values()):
        bound = index == 0 and parameter.name in ("self", "cls")
        if parameter.annotation is parameter.empty and not bound:
            yield f": parameter {parameter.name} is not annotated"
    if signature.return_annotation is signature.empty and function.__name__ != "__init__":
        yield ": no return annotation"


def source_of(package: str) -> str:
    path = ROOT.joinpath(*package.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


@pytest.mark.parametrize("package", FACES)
def test_public_names_are_a_literal_list_in_order(package):
    names = listed(source_of(package))
    assert names is not None, f"{package}/__init__.py has no literal list __all__"
    assert names == in_order(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("package", FACES)
def test_public_names_exist_and_are_typed_and_documented(package):
    names = listed(source_of(package)) or []
    assert faults(importlib.import_module(package), names) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_ship_their_types(package):
    assert (ROOT / package / "py.typed").exists()


def test_no_event_loop_and_no_slow_library_is_imported_before_it_is_needed():
    """Half of the time that `from runtime import Supervisor` took went to these."""
    slow = ("pytest", "asyncio", "trio", "psutil", "ssl", "logging", "tempfile", "subprocess", "rich", "click")
    code = f"import sys; from runtime import Supervisor; print(*[name for name in {slow} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == []


def test_the_tools_for_tests_do_not_need_pytest():
    code = "import sys; sys.modules['pytest'] = None; import anyio, lanes.testing; lanes.testing.run(anyio.sleep, 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


# The check itself


class Good:
    """A class as it should be."""

    def method(self, one: int, *rest: str, **more: object) -> None:
        """Nothing."""

    @property
    def value(self) -> int:
        """A number."""
        return 1

    @classmethod
    def make(cls) -> Good:
        """Another one."""
        return cls()

    def _private(self, one):
        pass


class Bad(Good):
    def __init__(self, one):
        self.one = one

    def method(self, one, *rest: str, **more: object):
        pass

    @property
    def other(self):
        return 1


def good(one: int) -> int:
    """The same."""
    return one


def bad(one, two=1):
    return one


def test_faults_are_found():
    here = sys.modules[__name__]
    assert faults(here, ["Good", "good", "ROOT"]) == []
    assert faults(here, ["missing"]) == [f"{__name__}.missing: does not exist"]
    assert faults(here, ["bad", "Bad"]) == [
        f"{__name__}.{fault}"
        for fault in (
            "bad: no docstring",
            "bad: parameter one is not annotated",
            "bad: parameter two is not annotated",
            "bad: no return annotation",
            "Bad: no docstring",
            "Bad.method: parameter one is not annotated",
            "Bad.method: no return annotation",
            "Bad.other: no docstring",
            "Bad.other: no return annotation",
            "Bad.__init__: parameter one is not annotated",
        )
    ]
    assert list(_faults_of(Path, "locks")) == [f": __module__ is {Path.__module__!r}"]


def test_a_computed_list_is_none():
    assert listed("__all__ = ['a', 'b']") == ["a", "b"]
    assert listed("__all__: list[str] = ['a']") == ["a"]
    assert listed("__all__ = [name for name in dir()]") is None
    assert listed("__all__ = ('a',)") is None
    assert listed("") is None


@pytest.mark.parametrize("package", PACKAGES)
def test_help_on_a_public_name_shows_no_object_of_ours(package):
    """An address is what an object without words of its own shows, such as a default that stands for "not given"."""
    module = importlib.import_module(package)
    texts = {name: pydoc.plain(pydoc.render_doc(getattr(module, name))) for name in module.__all__}
    assert [name for name, text in texts.items() if re.search(r"object at 0x|\b0x[0-9a-f]{6,}", text)] == []
