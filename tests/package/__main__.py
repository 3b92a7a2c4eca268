"""Builds the distribution and tries it as a user has it: `make package`, about five minutes.

    python -m tests.package [--python PYTHON ...] [--keep DIR]

1. Wheel and sdist of what is committed are built twice with the same `SOURCE_DATE_EPOCH`, in different places, and the
   wheel once more from the sdist: all are equal to the byte. The wheel has what it should have.
2. With each Python that there is, outside of the checkout: the wheel and all extras that users have, in the newest
   versions of their dependencies and in the lowest ones that `pyproject.toml` allows; `pip check`; a user's program;
   the command.
3. mypy and pyright, both strict, find nothing wrong in that program, and every error of a wrong one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests import ROOT

PYTHONS = ("python3.11", "python3.12", "python3.13")
WRONG = """from lanes import LaneSpec
from runtime import Supervisor

spec = LaneSpec("session:*", timeout="long")  # wrong
sup = Supervisor("sessions", lanes=spec)  # wrong
number: int = sup.post("session:1", "hello")  # wrong
"""
# A checker that finds none of these errors was given no types.
EXTRAS = ("cron", "gateway", "metrics", "postgres", "web")
EPOCH = "1700000000"
HERE = Path(__file__).parent


class Failed(Exception):
    """A step has not done what it should."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program; returns what it has printed.

    Raises:
        Failed: it ended badly.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(python: str, place: Path, *packages: str | Path) -> Path:
    """A virtual environment with some packages; returns its interpreter."""
    run(python, "-m", "venv", place, cwd=place.parent)
    inside = place / "bin" / "python"
    if packages:
        run(inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages, cwd=place.parent)
    return inside


# 1. Build


def build(builder: Path, source: Path, to: Path, *kinds: str) -> dict[str, Path]:
    """Build; returns the files by their suffix."""
    run(
        builder, "-m", "build", "--no-isolation", *kinds, "--outdir", to, source, cwd=to.parent, SOURCE_DATE_EPOCH=EPOCH
    )
    return {path.suffix: path for path in to.iterdir()}


def built_alike(builder: Path, place: Path) -> Path:
    """Build twice, and from the sdist; returns the wheel.

    Raises:
        Failed: two builds differ, or something is missing.
    """
    committed = archive(place)
    for name in ("one", "another-checkout"):  # nothing may depend on the path
        shutil.unpack_archive(committed, place / name)
    first = build(builder, place / "one", place / "first", "--sdist", "--wheel")
    second = build(builder, place / "another-checkout", place / "second", "--sdist", "--wheel")
    shutil.unpack_archive(first[".gz"], place / "unpacked")
    (unpacked,) = (place / "unpacked").iterdir()
    again = build(builder, unpacked, place / "again", "--wheel")
    for one, other in ((first[".whl"], second[".whl"]), (first[".gz"], second[".gz"]), (first[".whl"], again[".whl"])):
        if digest(one) != digest(other):
            raise Failed(f"{one} and {other} differ")
    wrong = contents_wrong(first[".whl"])
    if wrong:
        raise Failed("\n".join(wrong))
    return first[".whl"]


def archive(place: Path) -> Path:
    """What is committed, as an archive."""
    to = place / "checkout.tar"
    run("git", "archive", "--output", to, "HEAD", cwd=ROOT)
    return to


def digest(path: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents_wrong(wheel: Path) -> list[str]:
    """What a wheel lacks, and what it should not have."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in tracked("lanes", "locks", "runtime")}
    wanted |= {f"runtime/{path.relative_to(ROOT)}" for path in tracked("examples")}
    outside = {name for name in names - wanted if ".dist-info/" not in name}
    return [f"missing: {name}" for name in sorted(wanted - names)] + [f"not wanted: {name}" for name in sorted(outside)]


def tracked(*folders: str) -> list[Path]:
    """The files of folders that are committed."""
    return [ROOT / name for name in run("git", "ls-files", "-z", *folders, cwd=ROOT).split("\0") if name]


# 2. Install


def lowest() -> list[str]:
    """The lowest versions that `pyproject.toml` allows, of the core and of what users may add."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    found = (re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", one) for one in listed)
    return [f"{one[1]}=={one[2]}" for one in found if one]


def tried(python: str, wheel: Path, place: Path, which: str) -> Path:
    """Install, and run a user's program and the command; returns the interpreter."""
    place.mkdir()
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(lowest() if which == "lowest" else []), "utf-8")
    inside = environment(python, place / "venv", "-c", constraints, f"{wheel}[{','.join(EXTRAS)}]")
    run(inside, "-m", "pip", "check", cwd=place)
    (place / "user_program.py").write_bytes((HERE / "user_program.py").read_bytes())
    run(inside, "-W", "error", "user_program.py", "sessions", cwd=place)
    lanes = inside.with_name("lanes")
    run(lanes, "--version", cwd=place)
    run(lanes, "example", "gateway", cwd=place)
    run(inside, "-m", "examples.gateway", "--help", cwd=place)
    run(lanes, "run", "--duration", "1", "--sessions", "served", cwd=place)
    run(lanes, "doctor", "served", cwd=place)
    return inside


# 3. Types


def checked(inside: Path, place: Path) -> None:
    """Have mypy and pyright check a user's program, and a wrong one.

    Raises:
        Failed: the one has errors, or the other lacks one.
    """
    run(inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "mypy", "pyright", cwd=place)
    (place / "wrong_program.py").write_text(WRONG, "utf-8")
    (place / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}', "utf-8")
    lines = [number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")]
    for command in (["mypy", "--strict"], ["pyright", "--pythonpath", str(inside)]):
        run(inside, "-m", *command, "user_program.py", cwd=place)
        try:
            run(inside, "-m", *command, "wrong_program.py", cwd=place)
        except Failed as error:
            found = {int(number) for number in re.findall(r"wrong_program\.py:(\d+):.*error", str(error))}
        else:
            found = set()
        if found != set(lines):
            raise Failed(f"{command[0]} finds errors in lines {sorted(found)} of wrong_program.py; there are {lines}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.package", description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=pythons())
    parser.add_argument("--keep", type=Path, help="where to build, instead of a directory that is removed")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lanes-package-") as temporary:
        place = (given.keep or Path(temporary)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        try:
            builder = environment(sys.executable, place / "builder", "build", "hatchling")
            wheel = built_alike(builder, place)
            print(f"{wheel.name}, sha256 {digest(wheel)}: three builds are equal")
            for python in given.python:
                name = run(python, "-c", "import platform; print(platform.python_version())", cwd=place).strip()
                for which in ("newest", "lowest"):
                    there = place / f"{name}-{which}"
                    inside = tried(python, wheel, there, which)
                    print(f"Python {name}, {which} dependencies: installed, checked, served", flush=True)
                    if which == "newest" and python == given.python[-1]:
                        checked(inside, there)
                        print(f"Python {name}: mypy and pyright agree", flush=True)
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    missing = [name for name in PYTHONS if name not in {Path(one).name for one in given.python}]
    print(f"not tried, as they are not there: {', '.join(missing) or 'none'}")
    return 0


def pythons() -> list[str]:
    """The interpreters that there are, on the path or among those of pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    places = {name: [name, *map(str, sorted(versions.glob(f"*/bin/{name}")))] for name in PYTHONS}
    found = (next((place for place in places[name] if works(place)), None) for name in PYTHONS)
    return [one for one in found if one is not None]


def works(python: str) -> bool:
    """Whether there is such an interpreter."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
