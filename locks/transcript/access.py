"""Owner, group, mode and access lists of a file, carried over to the file that takes its place.

A compaction writes a new file and renames it over the old one, so all that decides about access has to be on the new
one before it has the name: owner, group, mode, access control list, extended attributes. What cannot be carried over is
a refusal, never a file that others may read, or that those it was meant for may not.

Until right before the rename the new file is its owner's alone, whatever a directory's default list gives to new files.
All is carried over at once, so that a refusal comes before anything is written, and again at the end: the old file may
have been closed to some user meanwhile.

Not carried over: what the kernel takes off a file with each write anyway or computes from its content; and flags and
project numbers of a file system (`chattr`), which say nothing about access, but for two that refuse a rename.

Rejected: to go on where the new file can have no owner but us, with the old mode. The same bits mean other people then.
"""

from __future__ import annotations

import errno
import os
import stat

from .. import _os
from ..errors import TranscriptError

_OF_THE_CONTENT = frozenset({"security.capability", "security.evm", "security.ima"})
_SYSTEM = "system."
_LABEL = "security.selinux"
_NONE_HERE = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_GONE = {errno.ENODATA} if hasattr(errno, "ENODATA") else set()


def check_flags(path: str, fd: int) -> None:
    """Refuse, before anything is written, what no rename could replace.

    Raises:
        TranscriptError: the file may only be appended to, or not be changed at all.
    """
    flags = _os.inode_flags(fd)
    for flag, letter, what in ((_os.FS_APPEND, "a", "appended to"), (_os.FS_IMMUTABLE, "i", "read")):
        if flags & flag:
            raise TranscriptError(
                f"cannot replace {path}: it may only be {what} (chattr +{letter}); first take that off it",
                path=path,
                errno=errno.EPERM,
            )


def carry_over(path: str, old: int, new: int) -> None:
    """Give a new file all that decides about access to the old one.

    Args:
        path: the old file's, for errors.
        old, new: open descriptors. The new file has to be its owner's alone; at no instant is it open to a user whom
            the old one shuts out.

    Raises:
        TranscriptError: something cannot be carried over; the message says what. The new file must not be used.
        OSError: one of the files cannot be looked at.
    """
    if not hasattr(os, "fchmod"):
        return  # on Windows, a new file has the rights of its directory
    like, made = _os.fstat(old), _os.fstat(new)
    wanted, given = _attributes(old), _attributes(new)
    if _access(like) == _access(made) and wanted == given:
        return
    if (like.st_uid, like.st_gid) != (made.st_uid, made.st_gid):
        whose = f"its owner, user {like.st_uid} and group {like.st_gid},"
        try:
            _os.fchown(new, like.st_uid, like.st_gid)
        except OSError as error:
            raise _refused(path, whose, error) from error
    for name in given.keys() - wanted.keys():
        if name.startswith(_SYSTEM):  # the directory's default list gave it
            try:
                _os.removexattr(new, name)
            except OSError as error:
                raise _refused(path, f"that it has no {name}", error) from error
    for name, value in sorted(wanted.items()):
        if given.get(name) != value:
            try:
                _os.setxattr(new, name, value)
            except OSError as error:
                if name == _LABEL and _same_but_user(value, given.get(name, b"")):
                    continue
                raise _refused(path, f"its attribute {name}", error) from error
    _finish(path, like, new)


def withhold(new: int) -> None:
    """Leave a new file to its owner alone again: also of those whom its list names, for the mode is the list's mask.

    Raises:
        OSError: it is as it was.
    """
    _os.fchmod(new, 0o600)


def _finish(path: str, like: os.stat_result, new: int) -> None:
    """Open the new file to those whom the old one is open to, and see whether the file system has done as it said."""
    mode = f"its mode {stat.S_IMODE(like.st_mode):04o}"
    if _access(_os.fstat(new)) != _access(like):
        try:
            _os.fchmod(new, stat.S_IMODE(like.st_mode))
        except OSError as error:
            raise _refused(path, mode, error) from error
        if _access(_os.fstat(new)) != _access(like):
            raise _refused(path, mode, OSError(errno.EPERM, "the file system gives it another one"))


def _access(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _attributes(fd: int) -> dict[str, bytes]:
    """What is attached to a file, by name; nothing where the file system knows no such thing."""
    found = {}
    try:
        for name in _os.listxattr(fd):
            if name not in _OF_THE_CONTENT:
                try:
                    found[name] = _os.getxattr(fd, name)
                except OSError as error:
                    if error.errno not in _GONE:
                        raise
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
    return found


def _same_but_user(one: bytes, other: bytes) -> bool:
    """Whether two SELinux labels have the same role, type and level: policies decide by these."""
    return one.partition(b":")[2] == other.partition(b":")[2] != b""


def _refused(path: str, what: str, error: OSError) -> TranscriptError:
    return TranscriptError(
        f"cannot replace {path}: {what} cannot be kept by user {os.geteuid()}: {error.strerror or error}; "
        "nothing has changed",
        path=path,
        errno=error.errno,
    )
