"""Who may do what with a session is the same after a compaction, and files beside it are never open to more people."""

from __future__ import annotations

import errno
import os
import stat
import struct
from functools import partial
from pathlib import Path

import pytest
from anyio import fail_after

from locks import LockRegistry, TranscriptError, _os
from locks.doctor.mending import mend
from tests.faults import NAMES
from tests.peers import peer
from tests.poll import eventually

pytestmark = pytest.mark.backends("asyncio", "trio")  # files and values: what uvloop does otherwise has no part in it

ROOT = os.geteuid() == 0
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NAMED, MEMBERS, ELSE = 1001, 100, 4242
"""A user whom a list names, the group of a file, and a user whom nothing names."""
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 16, 32
NOBODY_NAMED = 0xFFFFFFFF


def acl(*entries):
    """An access control list as the kernel stores it, from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def whole(group, mask, other=0):
    """A list with a named user who may read and write."""
    return acl(
        (USER_OBJ, 6, NOBODY_NAMED),
        (USER, 6, NAMED),
        (GROUP_OBJ, group, NOBODY_NAMED),
        (MASK, mask, NOBODY_NAMED),
        (OTHER, other, NOBODY_NAMED),
    )


OPEN_TO_ALL = acl(
    (USER_OBJ, 7, NOBODY_NAMED),
    (USER, 7, NAMED),
    (GROUP_OBJ, 7, NOBODY_NAMED),
    (MASK, 7, NOBODY_NAMED),
    (OTHER, 7, NOBODY_NAMED),
)


def attributes(path):
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def access(path):
    """All that decides about access to a file."""
    found = os.stat(path)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), attributes(path)


def readers(path):
    """Which of these may read a file, by POSIX's rules: its owner, the named user, members of its group, anybody."""
    found = os.stat(path)
    mode = found.st_mode
    may = {("user", found.st_uid)} if mode & 0o400 else set()
    if (listed := attributes(path).get(ACCESS)) is None:
        may |= {("group", found.st_gid)} if mode & 0o040 else set()
    else:
        entries = [struct.unpack_from("<HHI", listed, at) for at in range(4, len(listed), 8)]
        mask = next((permissions for tag, permissions, _ in entries if tag == MASK), 7)
        for tag, permissions, who in entries:
            if permissions & mask & 4:
                may |= {("user", who)} if tag == USER else {("group", found.st_gid)} if tag == GROUP_OBJ else set()
    return may | ({("user", ELSE)} if mode & 0o004 else set())


def with_list(path):
    os.chmod(path, 0o600)
    os.setxattr(path, ACCESS, whole(group=0, mask=6))


def with_narrow_mask(path):
    os.setxattr(path, ACCESS, whole(group=6, mask=4, other=4))


def with_attribute(path):
    os.setxattr(path, "user.note", b"kept")


def with_owner(path):
    os.chown(path, 1000, MEMBERS)
    os.chmod(path, 0o640)


def with_all(path):
    with_owner(path)
    with_list(path)
    os.setxattr(path, "trusted.note", b"kept")
    os.setxattr(path, "security.note", b"kept")


KINDS = {
    "private": lambda path: os.chmod(path, 0o600),
    "group": lambda path: os.chmod(path, 0o640),
    "all": lambda path: os.chmod(path, 0o1666),
    "list": with_list,
    "narrow mask": with_narrow_mask,
    "attribute": with_attribute,
    **({"owner": with_owner, "all of it": with_all} if ROOT else {}),
}


@pytest.fixture(params=["plain", "inheriting"])
def directory(request, tmp_path):
    """A directory; one whose new files belong to its group, and are by its default list open to everybody."""
    found = tmp_path / "sessions"
    found.mkdir(mode=0o777)
    if request.param == "inheriting":
        os.setxattr(found, DEFAULT, OPEN_TO_ALL)
        os.chmod(found, 0o2777)
    return found


@pytest.fixture
def path(directory):
    return directory / "session.jsonl"


@pytest.fixture
def registry():
    return LockRegistry()


async def compact(registry, path):
    async with registry.lease(path) as lease:
        read = await lease.read()
        await lease.replace([{"summary": 1}], through=read.position)


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_compaction_keeps_all_that_decides_about_access(registry, path, kind):
    path.write_bytes(b'{"n":1}\n')
    os.removexattr(path, ACCESS) if ACCESS in os.listxattr(path) else None
    KINDS[kind](path)
    before, inode = access(path), path.stat().st_ino
    await compact(registry, path)
    assert access(path) == before
    assert path.read_bytes() == b'{"summary":1}\n'
    assert path.stat().st_ino != inode


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.backends("asyncio")  # no task takes part in it
async def test_at_no_instant_may_anybody_read_the_new_file_who_may_not_read_the_old_one(
    registry, path, kind, monkeypatch
):
    path.write_bytes(b'{"n":1}\n')
    KINDS[kind](path)
    allowed, new, looked = readers(path) | {("user", os.geteuid())}, Path(f"{path}.new"), 0

    def watched(original, *args):
        nonlocal looked
        result = original(*args)
        if new.exists():
            looked += 1
            assert readers(new) <= allowed
        return result

    for name in NAMES:
        monkeypatch.setattr(_os, name, partial(watched, getattr(_os, name)))
    await compact(registry, path)
    assert readers(path) <= allowed
    assert looked > 5


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("how", ["mode", "list"])
async def test_whoever_is_shut_out_while_the_new_file_is_written_stays_shut_out(registry, path, how, monkeypatch):
    path.write_bytes(b'{"n":1}\n')
    with_list(path)
    synced = _os.fdatasync

    def shut_out(fd):
        synced(fd)
        assert readers(f"{path}.new") == {("user", os.geteuid())}
        if how == "mode":
            os.chmod(path, 0o600)
        else:
            os.removexattr(path, ACCESS)
            os.chmod(path, 0o600)

    monkeypatch.setattr(_os, "fdatasync", shut_out)
    await compact(registry, path)
    assert readers(path) == {("user", os.geteuid())}
    assert path.read_bytes() == b'{"summary":1}\n'


async def refused(registry, path, *words):
    """A compaction that is refused, with these words, and leaves all as it was."""
    before = access(path), path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(TranscriptError) as caught:
        await compact(registry, path)
    assert (access(path), path.read_bytes(), sorted(os.listdir(path.parent))) == before
    for word in (f"cannot replace {path}", *words):
        assert word in str(caught.value)
    assert registry.statistics().sessions == 0
    return caught.value


def fails(monkeypatch, name, code, only=lambda *_args: True):
    original = getattr(_os, name)

    def call(*args):
        if only(*args):
            raise OSError(code, os.strerror(code))
        return original(*args)

    monkeypatch.setattr(_os, name, call)


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("what", ["owner", "list", "attribute", "mode"])
async def test_what_cannot_be_kept_is_named_in_a_refusal_and_all_stays(registry, path, what, monkeypatch):
    path.write_bytes(b'{"n":1}\n')
    with_list(path)
    with_attribute(path)
    error = None
    match what:
        case "owner":
            fstat = _os.fstat

            def somebody_elses(fd):
                found = fstat(fd)
                new = os.readlink(f"/proc/self/fd/{fd}").endswith(".new")
                return found if new else os.stat_result((*found[:4], 1234, *found[5:]))

            monkeypatch.setattr(_os, "fstat", somebody_elses)
            fails(monkeypatch, "fchown", errno.EPERM)
            error = await refused(registry, path, "its owner, user 1234 and group ", "Operation not permitted")
        case "list":
            fails(monkeypatch, "setxattr", errno.EPERM, lambda _fd, name, _value: name == ACCESS)
            error = await refused(registry, path, f"its attribute {ACCESS} cannot be kept")
        case "attribute":
            fails(monkeypatch, "setxattr", errno.ENOSPC, lambda _fd, name, _value: name == "user.note")
            error = await refused(registry, path, "its attribute user.note cannot be kept", "No space left on device")
        case "mode":
            os.removexattr(path, ACCESS)
            os.chmod(path, 0o644)
            monkeypatch.setattr(_os, "fchmod", lambda _fd, _mode: None)  # a file system that does as it likes
            error = await refused(registry, path, "its mode 0644 cannot be kept")
    assert error is not None
    assert error.errno == (errno.ENOSPC if what == "attribute" else errno.EPERM)


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("label, kept", [(b"system_u:object_r:var_t:s0\0", True), (b"u:object_r:secret_t:s0\0", False)])
async def test_a_label_that_cannot_be_set_is_a_refusal_only_if_it_decides(registry, path, label, kept, monkeypatch):
    path.write_bytes(b'{"n":1}\n')
    name, list_of, get = "security.selinux", _os.listxattr, _os.getxattr
    monkeypatch.setattr(_os, "listxattr", lambda fd: [*list_of(fd), name])

    def labelled(fd, asked):
        new = os.readlink(f"/proc/self/fd/{fd}").endswith(".new")
        return get(fd, asked) if asked != name else b"u:object_r:var_t:s0\0" if new else label

    monkeypatch.setattr(_os, "getxattr", labelled)
    fails(monkeypatch, "setxattr", errno.EACCES, lambda _fd, asked, _value: asked == name)
    if kept:
        await compact(registry, path)
        assert path.read_bytes() == b'{"summary":1}\n'
    else:
        await refused(registry, path, f"its attribute {name} cannot be kept", "Permission denied")


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOSYS])
async def test_a_file_system_without_attributes_needs_none(registry, path, code, monkeypatch):
    path.write_bytes(b'{"n":1}\n')
    os.chmod(path, 0o640)
    fails(monkeypatch, "listxattr", code)
    await compact(registry, path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b'{"summary":1}\n', 0o640)


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("flag, what", [(_os.FS_APPEND, "appended to"), (_os.FS_IMMUTABLE, "read")])
async def test_a_file_that_no_rename_can_replace_is_refused_before_anything_is_written(
    registry, path, flag, what, monkeypatch
):
    path.write_bytes(b'{"n":1}\n')
    monkeypatch.setattr(_os, "inode_flags", lambda _fd: flag)
    await refused(registry, path, f"it may only be {what} (chattr +")
    assert path.read_bytes() == b'{"n":1}\n'


@pytest.mark.failure("Z9")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("notes_at_once")
async def test_files_beside_a_session_are_open_to_nobody_who_may_not_read_it(registry, path, kind):
    path.write_bytes(b'{"n":1}\n')
    KINDS[kind](path)
    allowed, archive = readers(path) | {("user", os.geteuid())}, access(path)
    with path.open("ab") as file:
        file.write(b'{"torn')
    async with registry.turn(path), registry.lease(path) as lease:
        await lease.append({"n": 2})
        beside = {file.name for file in path.parent.iterdir()}
        for file in path.parent.iterdir():
            assert readers(file) <= allowed, file
    assert beside == {path.name + end for end in ("", ".lock", ".turn", ".torn")}
    with path.open("ab") as file:
        file.write(b'{"torn')
    assert mend(str(path)).done
    for file in path.parent.iterdir():
        assert readers(file) <= allowed, file
    assert access(path) == archive


@pytest.mark.failure("Z9")
@pytest.mark.backends("asyncio")  # the other process does it all
async def test_who_does_not_own_a_session_and_may_give_nothing_away_cannot_compact_it(tmp_path):
    for one in (tmp_path, *tmp_path.parents):
        if one.stat().st_uid == os.geteuid() and len(one.parts) > 2:
            one.chmod(one.stat().st_mode | 0o055)
    os.chmod(tmp_path, 0o777)
    path = tmp_path / "shared.jsonl"
    path.write_bytes(b'{"n":1}\n')
    os.chmod(path, 0o666)
    before = access(path)
    with peer("faults", "compacts", path) as other, fail_after(30):
        await eventually(other.ended, within=60)
        (said,) = other.lines
    if ROOT:
        assert said.startswith(f"TranscriptError {errno.EPERM}: cannot replace {path}: its owner, user 0 and group ")
        assert path.read_bytes() == b'{"n":1}\n'
    else:  # it is this user's own
        assert said == "compacted"
    assert access(path) == before
    assert sorted(os.listdir(tmp_path)) == ["shared.jsonl", "shared.jsonl.warm-up"]
