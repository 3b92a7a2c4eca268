"""Which directories live on another machine, so that the locks taken here keep nobody there out.

A network file system may pass locks on to its server, emulate them on each host, or do either by a mount option that
cannot be seen from here; the same goes for directories that a virtual machine shares with its host. A session there can
have two writers, which nothing would notice until its lines are damaged. So such directories are refused, unless their
user says that only this host writes there.

The type is that of the mount point nearest above the directory. A look at the mount table takes a fraction of a
millisecond, so its answer is kept per device.
"""

from __future__ import annotations

import contextlib
import os

from . import _os
from .errors import TranscriptError

# As the mount table has them, without the `fuse.` that those in user space have in front.
_SERVERS = {"afpfs", "afs", "cifs", "coda", "ncpfs", "nfs", "nfs3", "nfs4", "smb2", "smb3", "smbfs", "sshfs"}
_CLUSTERS = {"beegfs", "ceph", "ceph-fuse", "gfs2", "glusterfs", "gpfs", "juicefs", "lustre", "mfs", "moosefs", "ocfs2"}
_OBJECT_STORES = {"blobfuse", "blobfuse2", "gcsfuse", "goofys", "mount-s3", "rclone", "s3fs"}
_WEB = {"davfs", "davfs2", "webdav"}
_HOSTS_OF_VIRTUAL_MACHINES = {"9p", "prl_fs", "vboxsf", "virtiofs", "vmhgfs", "vmhgfs-fuse"}
NETWORK_TYPES = _SERVERS | _CLUSTERS | _OBJECT_STORES | _WEB | _HOSTS_OF_VIRTUAL_MACHINES

_by_device: dict[int, str | None] = {}
"""What was found out, by device. A number that is used again after an unmount keeps the old answer: rare, and harmless
as long as mounts do not change under running programs."""


def prepare() -> None:
    """Import what the first look needs: no event loop should stand still for the tens of milliseconds that takes."""
    with contextlib.suppress(ImportError):
        import psutil  # noqa: F401, PLC0415 -- see above


def network_file_system(path: str, device: int | None = None) -> str | None:
    """The type of the network file system that a session lives on or would be created on, or `None` if it is local.

    Microseconds once its device is known. What cannot be found out counts as local. Callable from any thread.
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
    """Refuse a session on a network file system, before it is opened or created.

    Args:
        path: the transcript, existing or not.
        allow: whether its user knows and wants it.
        device: where it is, if that is known already.

    Raises:
        TranscriptError: it is on one. Nothing was opened or created.
    """
    if not allow and (kind := network_file_system(path, device)) is not None:
        raise TranscriptError(
            f"{path} is on {kind}, where locks of this host do not exclude other hosts: "
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
        return None  # no mount table to be had
    # Where another one was mounted further up, a hidden mount point is still in the table, but an ordinary directory.
    above = [one for one in above if _os.ismount(one[0])] or above
    if not above:
        return None
    _, kind, options = max(reversed(above), key=lambda one: len(one[0]))  # of several on one point, the one on top
    if kind.removeprefix("fuse.") in NETWORK_TYPES or "remote" in options.split(","):  # so Windows marks its drives
        return kind or "a network drive"
    return None


def _is_above(mount_point: str, path: str) -> bool:
    return path == mount_point or path.startswith(os.path.join(mount_point, ""))
