"""What something in the file system is, in words."""

from __future__ import annotations

import stat

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def kind_of(mode: int) -> str:
    """The kind of file that a mode of `stat` names: `a directory`."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")
