"""Names and files: one file is one session whatever it is called; replaced files; names that cannot be used."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import os
import socket

import anyio
import pytest
from anyio import create_task_group, fail_after

from locks import InvalidSession, LeaseLost, LeaseTimeout, LockRegistry, TranscriptError
from tests import leaks

pytestmark = pytest.mark.backends("asyncio", "trio")  # files and values: what uvloop does otherwise has no part in it


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


@pytest.mark.failure("B4")
@pytest.mark.parametrize("alias", ["symlink", "dangling symlink", "relative", "dots", "hard link", "directory symlink"])
@pytest.mark.parametrize("first", ["name", "alias"])
async def test_every_name_of_a_file_leads_to_the_one_right(
    registry, path, tmp_path, alias, first, virtual, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "alias.jsonl").symlink_to(path)
    (tmp_path / "door").symlink_to(tmp_path)
    if alias != "dangling symlink":
        path.touch()
        (tmp_path / "hard.jsonl").hardlink_to(path)
    other = {
        "symlink": tmp_path / "alias.jsonl",
        "dangling symlink": tmp_path / "alias.jsonl",
        "relative": "session.jsonl",
        "dots": "sub/../session.jsonl",
        "hard link": tmp_path / "hard.jsonl",
        "directory symlink": tmp_path / "door" / "session.jsonl",
    }[alias]
    names = [path, other] if first == "name" else [other, path]
    inside = 0

    async def write(name, number):
        nonlocal inside
        async with registry.lease(name) as lease:
            inside += 1
            assert inside == 1
            await lease.append({"n": number})
            await anyio.sleep(1)
            inside -= 1

    started = virtual.now()
    async with create_task_group() as group:
        for number in range(4):
            group.start_soon(write, names[number % 2], number)
            await virtual.settle()
        assert registry.statistics().sessions == 1
        assert registry.statistics().waiting == 3
    assert virtual.now() == started + 4
    assert [record["n"] for record in await registry.read(path)] == [0, 1, 2, 3]
    assert registry.statistics().sessions == 0


async def test_a_file_and_its_alias_cost_one_descriptor(path, tmp_path):
    registry = LockRegistry(engine="kernel", sidecar=False)
    path.touch()
    (tmp_path / "alias").symlink_to(path)
    before = leaks.descriptors()
    async with registry.turn(path), registry.lease(tmp_path / "alias"):
        assert len(leaks.descriptors() - before) == 1
    assert leaks.descriptors() == before


async def test_revoke_finds_a_session_by_any_of_its_names(registry, path, tmp_path):
    (tmp_path / "alias").symlink_to(path)
    with pytest.raises(LeaseLost):
        async with registry.lease(path):
            assert registry.revoke(tmp_path / "alias", "by another name") == 1
            await anyio.sleep_forever()


# A file that is replaced


async def test_who_waits_while_the_file_is_replaced_gets_the_new_one(registry, path, tmp_path, virtual):
    served = []

    async def wait(number):
        async with registry.lease(path) as lease:
            served.append(number)
            await lease.append({"n": number})

    async with create_task_group() as group, registry.lease(path) as lease:
        await lease.append({"old": True})
        for number in range(3):
            group.start_soon(wait, number)
            await virtual.settle()
        new = tmp_path / "new"
        new.write_bytes(b'{"new":true}\n')
        new.rename(path)
    assert sorted(served) == [0, 1, 2]
    assert await registry.read(path) == [{"new": True}, *({"n": number} for number in served)]
    assert registry.statistics().sessions == 0


@pytest.mark.parametrize("how", ["replaced", "removed"])
async def test_an_append_under_a_lease_whose_file_was_replaced_or_removed_is_refused(registry, path, tmp_path, how):
    async with registry.lease(path) as lease:
        await lease.append({"n": 1})
        if how == "replaced":
            (tmp_path / "new").write_bytes(b"")
            (tmp_path / "new").rename(path)
        else:
            path.unlink()
        with pytest.raises((LeaseLost, TranscriptError)):
            await lease.append({"n": 2})
    assert not path.exists() or path.read_bytes() == b""
    await registry.append(path, {"n": 3})
    assert await registry.read(path) == [{"n": 3}]


async def test_an_append_of_the_registry_goes_to_the_new_file(registry, path, tmp_path):
    await registry.append(path, {"n": 1})
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "new").rename(path)
    await registry.append(path, {"n": 2})
    assert await registry.read(path) == [{"n": 2}]


async def test_who_asks_for_the_name_while_the_old_file_is_held_waits_and_gets_the_new_one(
    registry, path, tmp_path, virtual
):
    async def other():
        async with registry.lease(path) as lease:
            assert virtual.now() == started + 1
            await lease.append({"n": "new"})

    started = virtual.now()
    async with create_task_group() as group, registry.lease(path) as lease:
        await lease.append({"n": "old"})
        path.rename(tmp_path / "aside")
        group.start_soon(other)
        await anyio.sleep(1)
    assert registry.statistics().sessions == 0
    assert await registry.read(path) == [{"n": "new"}]
    assert await registry.read(tmp_path / "aside") == [{"n": "old"}]


async def test_a_symlink_that_is_turned_elsewhere_leads_to_the_other_file(registry, path, tmp_path, virtual):
    one, two = tmp_path / "one", tmp_path / "two"
    path.symlink_to(one)

    async def wait():
        async with registry.lease(path) as lease:
            await lease.append({"n": 2})

    async with create_task_group() as group, registry.lease(path) as lease:
        await lease.append({"n": 1})
        group.start_soon(wait)
        await virtual.settle()
        path.unlink()
        path.symlink_to(two)
    assert one.read_bytes() == b'{"n":1}\n'
    assert two.read_bytes() == b'{"n":2}\n'


# Names and arguments that cannot be used


@pytest.mark.parametrize("name", ["", "with\0nul", b"bytes", "lone \ud800 surrogate"], ids=repr)
async def test_a_name_that_cannot_name_a_file_is_refused(registry, name):
    attempts = [registry.lease, registry.turn, lambda name: registry.revoke(name, "reason")]
    for attempt in attempts:
        with pytest.raises(InvalidSession):
            attempt(name)
    with pytest.raises(InvalidSession):
        await registry.append(name, {})
    with pytest.raises(InvalidSession):
        await registry.read(name)
    assert issubclass(InvalidSession, ValueError)


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "no directory", "too long", "symlink loop"])
async def test_a_path_that_is_no_regular_file_is_a_typed_error_and_opens_nothing(registry, tmp_path, kind, monkeypatch):
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("it")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "no directory":
        path = tmp_path / "no" / "it"
    elif kind == "too long":
        path = tmp_path / ("x" * 300)
    else:
        path.symlink_to(path)
    before = leaks.descriptors()
    with pytest.raises(TranscriptError) as caught:
        await registry.append(path, {})
    assert caught.value.path == str(path)
    for take in (registry.lease, registry.turn):
        with pytest.raises(TranscriptError):
            async with take(path):
                pytest.fail("entered")
    assert registry.statistics().sessions == 0
    assert leaks.descriptors() == before


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
async def test_reading_what_is_no_regular_file_is_a_typed_error_too(registry, tmp_path, kind):
    path = tmp_path / "it"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with fail_after(60), pytest.raises(TranscriptError):
        await registry.read(path)


@pytest.mark.parametrize("value", [float("nan"), -1, -0.001, -float("inf")])
async def test_a_duration_that_is_none_is_refused_by_name(registry, path, value):
    for field in ("max_hold", "wait_timeout"):
        with pytest.raises(ValueError, match=field):
            registry.lease(path, **{field: value})
        with pytest.raises(ValueError, match=field):
            registry.turn(path, **{field: value})
    for field in ("max_hold", "grace"):
        with pytest.raises(ValueError, match=field):
            LockRegistry(**{field: value})
    assert not path.exists()


async def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine"):
        LockRegistry(engine="flock")  # type: ignore[arg-type]  # what is tested


async def test_the_strongest_engine_of_the_platform_is_chosen():
    assert LockRegistry().engine == LockRegistry(engine="auto").engine == "kernel"


async def test_engine_none_excludes_this_process_only(path):
    one, other = LockRegistry(engine="none"), LockRegistry()
    async with one.lease(path, wait_timeout=0), other.lease(path, wait_timeout=0):
        pass

    async def wait():
        with pytest.raises(LeaseTimeout):
            async with one.lease(path, wait_timeout=0):
                pytest.fail("entered")

    async with one.lease(path), create_task_group() as group:
        group.start_soon(wait)
