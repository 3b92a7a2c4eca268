"""Which directories live on another machine, so that the locks taken here exclude no process there.

A network file system may pass locks on to its server, emulate them on each host, or do either by a mount option that
cannot be seen from here; the same goes for directories that a virtual machine shares with its host. A session there can
have two writers, which nothing would notice until its lines are damaged. So such directories are refused, unless their
user says that only this host writes there. What is behind a file system in user space (FUSE) only its own program
knows. So a type is refused unless it is known to be local: a list of remote ones alone would never be complete.

The type is that of the mount point nearest above the directory. A look at the mount table takes a fraction of a
millisecond, so its answer is kept per device. Where there is no mount table, in a chroot without `/proc`, the number of
the type that statfs(2) states has to do; a number that stands for none of the remote ones counts as local there.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from . import _os
from .errors import TranscriptError


class _Line(NamedTuple):
    """Some types of file systems, as the mount table names them, and where it is said what they are."""

    types: str
    """Those in user space have `fuse.` in front; a remote one is remote with and without."""
    local: bool
    source: str
    magic: tuple[int, ...] = ()
    """What statfs(2) has for them in `f_type`."""


_STAT_C = "coreutils, src/stat.c: local and remote types"
_TABLE = (
    _Line("ext2 ext3 ext4 xfs btrfs f2fs bcachefs zfs jfs nilfs2 reiserfs reiser4", True, _STAT_C),
    _Line("vfat msdos exfat ntfs ntfs3 hfs hfsplus apfs affs minix ufs refs fat fat32", True, _STAT_C),
    _Line("iso9660 udf cdfs squashfs erofs cramfs romfs", True, _STAT_C),
    _Line("jffs2 ubifs yaffs2", True, "kernel, Documentation/filesystems/ubifs.rst: flash of this machine"),
    _Line("tmpfs ramfs rootfs devtmpfs devfs hugetlbfs proc sysfs devpts", True, "proc_filesystems(5): in memory"),
    _Line("overlay overlayfs aufs", True, "kernel, overlayfs.rst: what is written goes to `upperdir`, never an NFS"),
    _Line("ecryptfs fuse.encfs fuse.gocryptfs fuse.bindfs", True, "gocryptfs(1), bindfs(1): a directory of this host"),
    _Line("lxfs wslfs", True, "Microsoft, WSL 1 file system support: the root and home of Linux"),
    _Line("fuseblk", True, "mount.fuse3(8), `blkdev`: backed by a block device, as those of ntfs-3g and exfat"),
    _Line("fuse.ext2 fuse.fuse2fs fuse.ext4", True, "fuse2fs(1): a device or image file"),
    _Line("fuse.fuse-overlayfs", True, "fuse-overlayfs(1): overlayfs of rootless containers"),
    _Line("fuse.shfs simfs", True, "Unraid, user shares; OpenVZ, simfs: a directory tree of this very server"),
    _Line("nfs nfs3 nfs4", False, "nfs(5), `local_lock`", (0x6969,)),
    _Line("cifs smb2 smb3 smbfs", False, "mount.cifs(8), `nobrl`", (0xFF534D42, 0xFE534D42, 0x517B)),
    _Line("afs openafs auristorfs", False, "gnulib, mountlist.c: ME_REMOTE", (0x5346414F, 0x6B414653)),
    _Line("coda ncp ncpfs acfs vxfs ibrix", False, _STAT_C, (0x73757245, 0x564C, 0x61636673, 0xA501FCF5)),
    _Line("afpfs webdav davfs davfs2", False, "mount_afp(8), mount_webdav(8), mount.davfs(8)"),
    _Line("ceph cephfs ceph-fuse", False, "mount.ceph(8), ceph-fuse(8)", (0x00C36400,)),
    _Line("gfs gfs2 ocfs2", False, "systemd, filesystem-sets.py: @network", (0x01161970, 0x7461636F)),
    _Line("lustre gpfs beegfs fhgfs panfs", False, _STAT_C, (0x0BD00BD0, 0x47504653, 0x19830326, 0xAAD7AAEA)),
    _Line("glusterfs orangefs pvfs2 moosefs mfs lizardfs juicefs", False, "systemd, @network; vendors", (0x20030528,)),
    _Line("sshfs rclone s3fs goofys gcsfuse blobfuse blobfuse2 mount-s3", False, "the manual page of each"),
    _Line("9p virtiofs", False, "kernel, 9p.rst, virtiofs.rst: a directory of the host", (0x01021997,)),
    _Line("vboxsf vmhgfs vmhgfs-fuse prl_fs", False, _STAT_C, (0x786F4256, 0xBACBACBC, 0x7C7C6673)),
    _Line("drvfs", False, "Microsoft, WSL file system support: drives of Windows, 9p since WSL 2"),
    _Line("fakeowner grpcfuse osxfs", False, "Docker Desktop, file sharing: directories of the Mac"),
    _Line("autofs", False, "autofs(5): nothing is mounted there yet"),
    _Line("fuse", False, "fuse(4): whatever its program says", (0x65735546,)),
)
LOCAL_TYPES = {name for line in _TABLE if line.local for name in line.types.split()}
NETWORK_TYPES = {name for line in _TABLE if not line.local for name in line.types.split()}
_BY_MAGIC = {magic: line.types.split()[0] for line in _TABLE for magic in line.magic}

_by_device: dict[int, str | None] = {}
"""What was found out, by device. A number that is used again after an unmount keeps the old answer: rare, and harmless
as long as mounts do not change under running programs."""


def prepare() -> None:
    """Import what the first look needs: no event loop should stand still for the tens of milliseconds that takes."""
    with contextlib.suppress(ImportError):
        import psutil  # noqa: F401, PLC0415 -- see above


def network_file_system(path: str, device: int | None = None) -> str | None:
    """The type of the file system that a session lives on or would be created on, or `None` if that is local.

    A type that is not known to be local is reported like one that is known not to be. Microseconds once its device is
    known. Where no type can be found out, it counts as local. Callable from any thread.
    """
    try:
        device = _device(path) if device is None else device
    except OSError:
        return None  # opening it will say what is wrong
    try:
        return _by_device[device]
    except KeyError:
        found = _by_device[device] = _look_up(_os.realpath(path))
        return found


def refuse(path: str, allow: bool = False, device: int | None = None) -> None:
    """Refuse a session on a file system that is not known to be local, before it is opened or created.

    Args:
        path: the transcript, existing or not.
        allow: whether its user knows and wants it.
        device: where it is, if that is known already.

    Raises:
        TranscriptError: it is on one. Nothing was opened or created.
    """
    if not allow and (kind := network_file_system(path, device)) is not None:
        why = "where locks of this host do not exclude other hosts"
        if not _is_remote(kind):
            why = "which is not known to be local, so locks of this host may not exclude other hosts"
        raise TranscriptError(
            f"{path} is on {kind}, {why}: "
            "use a local disk, or, if only this host ever writes there, allow_network_fs=True",
            path=path,
        )


def _device(path: str) -> int:
    try:
        return _os.stat(path).st_dev
    except FileNotFoundError:
        return _os.stat(os.path.dirname(path) or os.curdir).st_dev


def _look_up(path: str) -> str | None:
    if path.startswith(r"\\") and not path.startswith((r"\\?", r"\\.")):
        return "a network share"  # Windows has no mount point for it
    import psutil  # noqa: PLC0415 -- slow to import, and needed once per device

    above: list[tuple[str, str, str]] = []
    try:
        for mount in psutil.disk_partitions(all=True):
            point = mount.mountpoint.replace("\\043", "#")  # the one character that libc leaves as the kernel writes it
            if _is_above(point, path):
                above.append((point, mount.fstype, mount.opts))
    except OSError:
        return _look_up_without_table(path)
    # Where another one was mounted further up, a hidden mount point is still in the table, but an ordinary directory.
    above = [one for one in above if _os.ismount(one[0])] or above
    if not above:
        return _look_up_without_table(path)
    _, kind, options = max(reversed(above), key=lambda one: len(one[0]))  # of several on one point, the one on top
    if "remote" in options.split(","):  # so Windows marks its drives
        return kind or "a network drive"
    return None if _is_local(kind.lower()) else kind or "an unknown type"


def _look_up_without_table(path: str) -> str | None:
    """By the number alone, of the file or the directory that it would be in."""
    for there in (path, os.path.dirname(path)):
        if (magic := _os.file_system_magic(there)) is not None:
            return _BY_MAGIC.get(magic)
    return None


def _is_local(kind: str) -> bool:
    if os.name == "nt":
        return not kind.startswith("fuse")  # a drive that is no network drive
    return kind in LOCAL_TYPES or kind.startswith("fuseblk.")


def _is_remote(kind: str) -> bool:
    name = kind.lower().removeprefix("fuse.")
    return (name in NETWORK_TYPES and name != "fuse") or name.startswith("a network")


def _is_above(mount_point: str, path: str) -> bool:
    return path == mount_point or path.startswith(os.path.join(mount_point, ""))
