"""A session key never names anything outside its directory, and no two keys share a file."""

from __future__ import annotations

import hashlib
import json
import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lanes import LaneSpec, RunState, SessionLayout
from locks import InvalidSession
from runtime import Supervisor
from tests.supervised import assert_empty, lines_of, path_of

KEYS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200).filter(
    lambda key: len(key.encode()) <= 1024
)
HOSTILE = [
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "a/../../b",
    "~root",
    "con",
    "a\\b",
    "file:///x",
    "-rf",
    "%2e%2e%2f",
    "\u202e",
]


async def body(ctx):
    await ctx.session.append({"text": ctx.session.key})


@given(KEYS)
@example("../x")
@example("/etc/passwd")
@example("é" * 512)
@example("x" * 1024)
def test_every_legal_key_has_a_file_right_in_the_directory_with_a_tame_name(key):
    file = SessionLayout("/root/of/sessions").file_of(key)
    directory, name = os.path.split(file)
    assert directory == "/root/of/sessions" and os.path.normpath(file) == file
    match = re.fullmatch(r"(?:([a-z0-9-]{1,60})-)?([0-9a-f]{16})\.jsonl", name)
    assert match is not None
    assert match[2] == hashlib.sha256(key.encode()).hexdigest()[:16]


@given(KEYS, KEYS)
@example("A", "a")
@example("é", "e\u0301")
@example("a b", "a-b")
@example("a", "a ")
@example("x" * 61, "x" * 62)
def test_keys_share_a_file_only_if_they_are_equal_code_point_by_code_point(one, other):
    file_of = SessionLayout("sessions").file_of
    assert (file_of(one) == file_of(other)) == (one == other)


@given(st.lists(KEYS, unique=True, min_size=2, max_size=50))
def test_distinct_keys_have_distinct_files_even_where_case_does_not_count(keys):
    file_of = SessionLayout("sessions").file_of
    assert len({file_of(key).lower() for key in keys}) == len(keys)


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
async def test_a_hostile_key_that_is_legal_is_served_inside_the_directory(virtual, tmp_path, key):
    root = tmp_path / "sessions"
    async with Supervisor(root) as sup:
        await sup.run("main", body, session=key)
        await sup.run(f"session:{key}", body)
        assert_empty(sup)
    assert list(tmp_path.iterdir()) == [root]
    (file,) = root.iterdir()
    header, *records = file.read_text().splitlines()
    assert json.loads(header)["lanes.session"] == key
    assert [json.loads(record)["text"] for record in records] == [key, key]


async def test_the_files_are_for_their_owner_only(virtual, tmp_path):
    async with Supervisor(tmp_path / "sessions") as sup:
        await sup.run("session:a", body)
        assert path_of(sup, "a").stat().st_mode & 0o077 == 0
        assert (tmp_path / "sessions").stat().st_mode & 0o077 == 0


# A layout of somebody else's


async def test_a_layouts_own_paths_are_used_without_a_header(virtual, tmp_path):
    layout = SessionLayout(tmp_path, path=lambda key: f"{key}/log.jsonl")
    (tmp_path / "a").mkdir()
    async with Supervisor(layout) as sup:
        await sup.run("session:a", body)
    assert (tmp_path / "a" / "log.jsonl").read_text() == '{"text":"a"}\n'


async def test_a_layouts_own_header_is_the_first_line_and_no_record(virtual, tmp_path):
    async def reads(ctx):
        await ctx.session.append({"text": "first"})
        return list(await ctx.session.read())

    layout = SessionLayout(
        tmp_path, path=lambda key: f"{key}.jsonl", header=lambda key: {"lanes.session": key, "by": "me"}
    )
    async with Supervisor(layout) as sup:
        assert await sup.run("session:a", reads) == [{"text": "first"}]
        assert lines_of(path_of(sup, "a")) == [{"text": "first"}]
        assert path_of(sup, "a").read_text().startswith('{"lanes.session":"a","by":"me"}\n')


async def test_a_layouts_own_path_is_asked_once_for_a_run_and_its_session(virtual, tmp_path):
    asked = []

    def path(key):
        asked.append(key)
        return f"{key}.jsonl"

    async with Supervisor(SessionLayout(tmp_path, path=path)) as sup:
        await sup.run("session:a", body)
    assert asked == ["a"]


OUTSIDE = {
    "parent": lambda root: "../outside.jsonl",
    "detour": lambda root: "inside/../../outside.jsonl",
    "absolute": lambda root: str(root.parent / "outside.jsonl"),
    "the root itself": lambda root: ".",
    "a neighbour whose name begins alike": lambda root: f"../{root.name}-2/a.jsonl",
    "a symbolic link": lambda root: "link/a.jsonl",
    "a link that is the file": lambda root: "link.jsonl",
    "a NUL": lambda root: "a\0b",
}


@pytest.mark.parametrize("how", OUTSIDE)
async def test_a_layout_that_leads_outside_its_root_is_refused_before_any_io(virtual, tmp_path, how):
    root = tmp_path / "sessions"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link.jsonl").symlink_to(tmp_path / "elsewhere" / "a.jsonl")
    layout = SessionLayout(root, path=lambda key: OUTSIDE[how](root))
    async with Supervisor(layout, lanes=[LaneSpec("session:*")]) as sup:
        with pytest.raises(InvalidSession, match=r"^session: 'a' .*allowed: "):
            sup.submit("session:a", body)
        assert_empty(sup)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "link.jsonl", "sessions"]


async def test_an_absolute_path_inside_the_root_is_allowed(virtual, tmp_path):
    layout = SessionLayout(tmp_path, path=lambda key: tmp_path / f"{key}.jsonl")
    async with Supervisor(layout) as sup:
        await sup.run("session:a", body)
    assert lines_of(tmp_path / "a.jsonl") == [{"text": "a"}]


@pytest.mark.failure("B4")
async def test_two_keys_of_one_file_never_conduct_it_at_once(virtual, tmp_path):
    import anyio

    running = []

    async def conducts(ctx):
        running.append(ctx.session.key)
        assert len(running) == 1
        await anyio.sleep(1)
        running.clear()
        return ctx.session.key

    (tmp_path / "a.jsonl").touch()
    (tmp_path / "soft.jsonl").symlink_to(tmp_path / "a.jsonl")
    os.link(tmp_path / "a.jsonl", tmp_path / "hard.jsonl")
    layout = SessionLayout(tmp_path, path=lambda key: f"{key}.jsonl")
    async with Supervisor(layout) as sup:
        keys = ["a", "soft", "hard"] * 3
        runs = [sup.submit("main", conducts, session=key) for key in keys]
        assert [await run.result() for run in runs] == keys
        assert_empty(sup)


async def test_a_session_file_that_is_no_regular_file_fails_its_runs_and_harms_nobody(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        path_of(sup, "directory").mkdir()
        os.mkfifo(path_of(sup, "pipe"))
        for key in ("directory", "pipe"):
            outcome = await sup.submit(f"session:{key}", body).wait()
            assert outcome.state is RunState.FAILED and key in outcome.reason
        await sup.run("session:a", body)
        assert_empty(sup)
