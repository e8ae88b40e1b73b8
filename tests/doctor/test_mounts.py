"""Which mount a path lies on, and what is known of its type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.doctor import mounts, site
from kvshelf.doctor.mounts import Mount, Reach, mount_of
from tests.harness.quirk_mount import REPOSITORY, quirk_mount
from tests.mounts import mounts_allowed

SHOW = (
    "import sys; from pathlib import Path; from kvshelf.doctor.mounts import mount_of; "
    "mount = mount_of(Path(sys.argv[1])); print(mount.kind, mount.point, sorted(mount.options))"
)


def shown(script: str, path: Path) -> str:
    """The mount of a path, in a mount namespace that the script has changed; "$1" is a folder."""
    if not mounts_allowed():
        pytest.skip("mounting is not allowed")
    line = ["unshare", "--mount", "sh", "-ec", f'{script}; shift; exec "$@"', "sh", str(path)]
    line += [sys.executable, "-c", SHOW, str(path / "at")]
    done = subprocess.run(line, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    if "mount: " in done.stderr or "mkfs" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_number_tells_mounts_of_one_device_apart(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    here = str(tmp_path.resolve())
    text = (
        f"21 1 {number} / {here} rw - ext4 /dev/a rw\n"
        f"22 1 {number} /x {here} ro,noatime - ext4 /dev/a rw\n"
        f"23 1 0:99 / {here} rw - btrfs /dev/b rw,subvol=/home\n"
    )
    assert "noatime" in mount_of(tmp_path, text, 22).options
    assert mount_of(tmp_path, text, 21).options == {"rw"}
    assert mount_of(tmp_path, text, 23).kind == "btrfs"
    assert "noatime" in mount_of(tmp_path, text).options  # of equal ones the last


def test_another_device_in_mountinfo_is_still_a_mount(tmp_path: Path) -> None:
    """btrfs, overlay: stat(2) says another device than mountinfo; old kernels give no number."""
    text = (
        "1 0 0:1 / / rw - overlay overlay rw,lowerdir=/l\n"
        f"2 1 0:2 /@kv {tmp_path.resolve()} rw - btrfs /dev/b rw,subvol=/@kv\n"
    )
    found = mount_of(tmp_path, text)
    assert (found.kind, found.point) == ("btrfs", str(tmp_path.resolve()))


def test_an_overmounted_and_a_bound_folder(tmp_path: Path) -> None:
    make = 'mkdir -p "$1/at" "$1/other"; '
    bind = 'mount -t tmpfs one "$1/other"; mount --bind "$1/other" "$1/at"'
    assert shown(make + bind, tmp_path).startswith(f"tmpfs {tmp_path}/at ")
    remount = f'{bind}; mount -o remount,bind,noatime "$1/at"'
    assert "noatime" in shown(make + remount, tmp_path)
    over = 'mount -t tmpfs one "$1/at"; mount -t ramfs two "$1/at"'
    assert shown(make + over, tmp_path).startswith("ramfs ")


def test_a_subvolume_of_btrfs_is_btrfs(tmp_path: Path) -> None:
    make = (
        'mkdir -p "$1/whole"; truncate -s 200M "$1/image"; mkfs.btrfs -q "$1/image" >/dev/null; '
        'mount -o loop "$1/image" "$1/whole"; btrfs -q subvolume create "$1/whole/kv"; '
    )
    at_subvolume = make + 'ln -s "$1/whole/kv" "$1/at"'
    assert shown(at_subvolume, tmp_path).startswith(f"btrfs {tmp_path}/whole ")
    (tmp_path / "at").unlink()
    (tmp_path / "image").unlink()
    device = 'device=$(findmnt -vno SOURCE "$1/whole"); mkdir "$1/at"; '
    mounted = make + device + 'mount -o subvol=kv,noatime "$device" "$1/at"'
    assert shown(mounted, tmp_path).startswith(f"btrfs {tmp_path}/at ")


def test_an_overlay_is_its_own(tmp_path: Path) -> None:
    make = (
        'mkdir -p "$1/at" "$1/o"; mount -t tmpfs t "$1/o"; mkdir "$1/o/u" "$1/o/w" "$1/o/l"; '
        'mount -t overlay o -o "upperdir=$1/o/u,workdir=$1/o/w,lowerdir=$1/o/l" "$1/at"'
    )
    assert shown(make, tmp_path).startswith(f"overlay {tmp_path}/at ")


def test_without_proc_the_type_is_known_all_the_same(tmp_path: Path) -> None:
    assert shown('mount -t tmpfs n /mnt; ln -s /mnt "$1/at"; mount -t tmpfs n /proc', tmp_path) == (
        "tmpfs ? []"
    )


def test_a_server_of_fuse_is_found(tmp_path: Path) -> None:
    with quirk_mount(tmp_path) as mount:
        found = mount_of(mount.path)
        assert (found.kind, found.point) == ("fuse", str(mount.path.resolve()))
        assert found.known.reach is Reach.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "reach"),
    [
        ("nfs4", Reach.SHARED),
        ("ceph", Reach.SHARED),
        ("fuse.ceph-fuse", Reach.SHARED),
        ("fuse.mfs", Reach.SHARED),
        ("gpfs", Reach.SHARED),
        ("wekafs", Reach.SHARED),
        ("smb3", Reach.SHARED),
        ("fuse.s3fs", Reach.SHARED),
        ("fuse.gcsfuse", Reach.SHARED),
        ("fuseblk", Reach.LOCAL),
        ("xfs", Reach.LOCAL),
        ("ramfs", Reach.MEMORY),
        ("overlay", Reach.LAYER),
        ("fuse.somebodys", Reach.UNKNOWN),
        ("parallelfs", Reach.UNKNOWN),
        ("unknown", Reach.UNKNOWN),
    ],
)
def test_reach(kind: str, reach: Reach) -> None:
    mount = Mount("/m", kind, frozenset({"rw"}))
    assert mount.known.reach is reach
    messages = [finding.message for finding in site.check_mount(mount)]
    assert any("local" in message for message in messages) == (reach is Reach.LOCAL)
    assert any("does not know" in message for message in messages) == (reach is Reach.UNKNOWN)


def test_names_that_only_the_source_or_an_option_tells() -> None:
    assert Mount("/m", "fuse", frozenset(), "mountpoint-s3").known.reach is Reach.SHARED
    assert Mount("/m", "fuse", frozenset(), "bucket").known.reach is Reach.UNKNOWN
    drive = Mount("/mnt/c", "9p", frozenset({"rw", "aname=drvfs;path=C:"}))
    assert drive.known is mounts.Mount("/", "drvfs", frozenset()).known


def test_lustre_without_locks_is_noted() -> None:
    for options, noted in (({"rw"}, True), ({"rw", "flock"}, False), ({"localflock"}, False)):
        found = site.check_mount(Mount("/m", "lustre", frozenset(options)))
        assert any("flock" in finding.message for finding in found) == noted
