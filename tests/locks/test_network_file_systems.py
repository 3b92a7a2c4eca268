"""Sessions on network file systems are found and refused. The mount table is made up; psutil reads it as always."""

from __future__ import annotations

import os

import psutil
import pytest

from locks import TranscriptError, _os, network


def escaped(name: str) -> str:
    """As the kernel writes it, the backslash first."""
    for character in "\\ \t\n#":
        name = name.replace(character, f"\\{ord(character):03o}")
    return name


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """Puts lines into the mount table, and forgets what was known about devices."""
    table = tmp_path / "proc" / "self" / "mounts"
    table.parent.mkdir(parents=True)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    monkeypatch.setattr(network, "_by_device", {})

    def put(*lines: tuple[str, str], hidden: str | None = None) -> None:
        rows = [f"device {escaped(point)} {kind} rw,relatime 0 0\n" for point, kind in (("/", "ext4"), *lines)]
        table.write_text("".join(rows))
        there = {"/", *(point for point, _ in lines)} - {hidden}
        monkeypatch.setattr("locks._os.ismount", there.__contains__)

    return put


@pytest.fixture
def asked(monkeypatch):
    """How often the mount table was read."""
    calls: list[bool] = []
    original = psutil.disk_partitions

    def disk_partitions(all: bool = False):  # noqa: A002 -- psutil's name
        calls.append(all)
        return original(all=all)

    monkeypatch.setattr(psutil, "disk_partitions", disk_partitions)
    return calls


@pytest.fixture
def devices(monkeypatch):
    """Makes directories look as if they were on devices of their own."""
    numbers: dict[str, int] = {}
    original = _os.stat

    def stat(path):
        found = original(path)
        under = [at for at in numbers if str(path) == at or str(path).startswith(at + os.sep)]
        if not under:
            return found
        return os.stat_result((*found[:2], numbers[max(under, key=len)], *found[3:10]))

    monkeypatch.setattr("locks._os.stat", stat)
    return numbers


OF_DESKTOPS = ["fakeowner", "fuse.grpcfuse", "fuse.osxfs", "virtiofs", "drvfs", "prl_fs", "vboxsf", "fuse.vmhgfs-fuse"]
OF_CLOUDS = ["fuse.cephfs", "fuse.ceph-fuse", "fuse.rclone", "fuse.glusterfs", "gpfs", "beegfs", "auristorfs", "autofs"]
UNKNOWN = ["fuse", "fuse.of-tomorrow", "of-tomorrow", "FUSE.SHOUTED"]
KINDS = ["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "9p", "afs", "davfs", "fuse.sshfs", "fuse.s3fs"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_file_system_is_found(mounts, tmp_path, kind):
    mounts((str(tmp_path), kind))
    assert network.network_file_system(str(tmp_path / "new.jsonl")) == kind


@pytest.mark.failure("Y4")
@pytest.mark.parametrize("kind", [*OF_DESKTOPS, *OF_CLOUDS])
def test_what_is_known_to_be_remote_is_refused_with_its_type_and_the_way_out(mounts, tmp_path, kind):
    mounts((str(tmp_path), kind))
    with pytest.raises(TranscriptError, match=f"is on {kind}, where locks .* do not .* allow_network_fs=True"):
        network.refuse(str(tmp_path / "a.jsonl"))


@pytest.mark.failure("Y4")
@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_known_to_be_local_is_refused_and_called_so(mounts, tmp_path, kind):
    mounts((str(tmp_path), kind))
    with pytest.raises(
        TranscriptError, match=f"is on {kind}, which is not known to be local, .* allow_network_fs=True"
    ):
        network.refuse(str(tmp_path / "a.jsonl"))
    network.refuse(str(tmp_path / "a.jsonl"), allow=True)


@pytest.mark.failure("Y4")
@pytest.mark.parametrize("kind", sorted(network.LOCAL_TYPES | {"fuseblk.ntfs-3g", "NTFS"}))
def test_what_is_known_to_be_local_is_taken(mounts, tmp_path, kind):
    mounts((str(tmp_path), kind))
    network.refuse(str(tmp_path / "a.jsonl"))


@pytest.mark.failure("Y4")
def test_no_type_is_both_local_and_remote_and_each_has_a_source():
    assert not network.LOCAL_TYPES & network.NETWORK_TYPES
    assert not {f"fuse.{kind}" for kind in network.NETWORK_TYPES} & network.LOCAL_TYPES
    assert all(line.types and line.source for line in network._TABLE)


@pytest.mark.failure("Y4")
@pytest.mark.parametrize(
    "magic, kind", [(0x6969, "nfs"), (0x65735546, "fuse"), (0x01021997, "9p"), (0xFE534D42, "cifs")]
)
@pytest.mark.parametrize("exists", [True, False])
def test_without_a_mount_table_the_kernel_itself_is_asked(mounts, tmp_path, monkeypatch, magic, kind, exists):
    """As in a chroot without `/proc`."""
    asked = []

    def file_system_magic(path):
        asked.append(path)
        return magic if exists or path == str(tmp_path) else None

    monkeypatch.setattr("locks._os.file_system_magic", file_system_magic)
    path = str(tmp_path / "a.jsonl")
    assert network.network_file_system(path) == kind
    assert asked == [path] if exists else [path, str(tmp_path)]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "fuse.gocryptfs"])
def test_a_local_file_system_is_not_taken_for_one(mounts, tmp_path, kind):
    mounts((str(tmp_path), kind))
    assert network.network_file_system(str(tmp_path / "new.jsonl")) is None


def test_the_nearest_mount_point_counts_whatever_the_order(mounts, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    mounts((str(inner), "nfs4"), (str(tmp_path), "ext4"))
    assert network.network_file_system(str(inner / "a.jsonl")) == "nfs4"


def test_a_local_directory_on_a_network_root_is_local(mounts, tmp_path):
    mounts(("/", "nfs"), (str(tmp_path), "tmpfs"))
    assert network.network_file_system(str(tmp_path / "a.jsonl")) is None


def test_a_mount_point_that_only_begins_alike_is_not_above(mounts, tmp_path):
    (tmp_path / "data2").mkdir()
    mounts((str(tmp_path / "data"), "nfs4"))
    assert network.network_file_system(str(tmp_path / "data2" / "a.jsonl")) is None


def test_of_two_mounts_on_one_point_the_last_counts(mounts, tmp_path):
    mounts((str(tmp_path), "ext4"), (str(tmp_path), "nfs4"))
    assert network.network_file_system(str(tmp_path / "a.jsonl")) == "nfs4"


def test_a_mount_that_another_one_further_up_has_hidden_does_not_count(mounts, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()  # now an ordinary directory of what is mounted on `tmp_path`
    mounts((str(hidden), "ext4"), (str(tmp_path), "nfs4"), hidden=str(hidden))
    assert network.network_file_system(str(hidden / "a.jsonl")) == "nfs4"


def test_a_directory_bound_within_its_own_file_system_is_what_its_nearest_mount_point_is(mounts, tmp_path):
    bound = tmp_path / "bound"
    bound.mkdir()  # on the same device as the directory around it, it cannot be told from an ordinary one
    mounts((str(tmp_path), "nfs4"), (str(bound), "nfs4"), hidden=str(bound))
    assert network.network_file_system(str(bound / "a.jsonl")) == "nfs4"


@pytest.mark.parametrize("name", ["with space", "tab\there", "back\\slash", "line\nfeed", "ümlaut", "hash#"])
def test_a_mount_point_with_an_odd_name_is_found(mounts, tmp_path, name):
    (tmp_path / name).mkdir()
    mounts((str(tmp_path / name), "cifs"))
    assert network.network_file_system(str(tmp_path / name / "a.jsonl")) == "cifs"


def test_a_symlinked_session_is_where_its_file_is(mounts, devices, tmp_path):
    server = tmp_path / "server"
    server.mkdir()
    devices[str(server)] = devices[str(tmp_path / "alias.jsonl")] = 77
    (server / "a.jsonl").touch()
    (tmp_path / "alias.jsonl").symlink_to(server / "a.jsonl")
    mounts((str(server), "nfs4"))
    assert network.network_file_system(str(tmp_path / "alias.jsonl")) == "nfs4"
    assert network.network_file_system(str(tmp_path / "other.jsonl")) is None


def test_a_relative_path_is_looked_up_where_it_leads(mounts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mounts((str(tmp_path), "nfs4"))
    assert network.network_file_system("a.jsonl") == "nfs4"


def test_the_mount_table_is_read_once_per_device(mounts, devices, asked, tmp_path):
    (tmp_path / "other").mkdir()
    mounts((str(tmp_path / "other"), "nfs4"))
    for _ in range(3):
        for number in range(3):
            assert network.network_file_system(str(tmp_path / f"{number}.jsonl")) is None
    assert asked == [True]
    devices[str(tmp_path / "other")] = 77
    assert network.network_file_system(str(tmp_path / "other" / "a.jsonl")) == "nfs4"
    assert asked == [True, True]


def test_without_a_mount_table_a_session_counts_as_local(mounts, tmp_path):
    assert network.network_file_system(str(tmp_path / "a.jsonl")) is None


def test_a_session_whose_directory_is_missing_is_left_to_whoever_opens_it(mounts, tmp_path):
    mounts((str(tmp_path), "nfs4"))
    network.refuse(str(tmp_path / "missing" / "a.jsonl"))


def test_the_refusal_names_the_path_and_the_kind_and_what_to_do(mounts, tmp_path):
    path = str(tmp_path / "a.jsonl")
    mounts((str(tmp_path), "nfs4"))
    with pytest.raises(TranscriptError) as caught:
        network.refuse(path)
    assert caught.value.path == path
    assert not caught.value.retryable
    assert str(caught.value) == (
        f"{path} is on nfs4, where locks of this host do not exclude other hosts: "
        "use a local disk, or, if only this host ever writes there, allow_network_fs=True"
    )
    assert not os.path.exists(path)


def test_what_its_user_allows_is_not_refused(mounts, asked, tmp_path):
    mounts((str(tmp_path), "nfs4"))
    network.refuse(str(tmp_path / "a.jsonl"), allow=True)
    assert asked == []


def test_a_local_session_is_not_refused(mounts, tmp_path):
    mounts((str(tmp_path), "ext4"))
    network.refuse(str(tmp_path / "a.jsonl"))


def test_this_machines_own_mount_table_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "_by_device", {})
    network.network_file_system(str(tmp_path / "a.jsonl"))
    assert len(network._by_device) == 1


@pytest.mark.failure("Y4")
def test_the_kernel_tells_the_type_of_a_directory_and_nothing_of_what_is_missing(tmp_path):
    assert (_os.file_system_magic("/proc") == 0x9FA0) == (os.uname().sysname == "Linux")
    assert _os.file_system_magic(str(tmp_path / "missing")) is None
