"""What statvfs says, judged: numbers that cannot be are no numbers, and a limit by them is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvshelf.disk.volume import Volume, volume_of, why_no_room

ONES = (-1, 2**64 - 1, 2**63 - 1, 2**32 - 1, 2**31 - 1)


def judged(**numbers: int) -> Volume:
    """Of 100 blocks of 4 KiB 40 are free, 30 for us; of 1,000 inodes 300."""
    found = {
        "f_bsize": 4096,
        "f_frsize": 4096,
        "f_blocks": 100,
        "f_bfree": 40,
        "f_bavail": 30,
        "f_files": 1000,
        "f_ffree": 300,
        "f_favail": 300,
    }
    return Volume.from_statvfs(SimpleNamespace(**(found | numbers)))


def test_plain_numbers_are_as_df_has_them() -> None:
    volume = judged()
    assert volume == Volume(60 * 4096, 90 * 4096, 700, 1000)
    assert volume.counts_bytes and volume.counts_inodes and not volume.doubt
    assert volume.used_percent == 67 and volume.used_inode_percent == 70  # df rounds up
    assert volume.size_bytes == 100 * 4096 and volume.free_bytes == 30 * 4096


@pytest.mark.parametrize("free", [*ONES, -2, 1001, 2**64 - 7])
def test_free_inodes_that_cannot_be_are_not_counted(free: int) -> None:
    """CephFS: f_files is the number of files, f_ffree all ones; Python says -1."""
    volume = judged(f_files=13, f_ffree=free, f_favail=free)
    assert not volume.counts_inodes and (volume.used_inodes, volume.total_inodes) == (0, 0)
    assert volume.inodes_unknown and volume.used_inode_percent is None
    assert volume.counts_bytes


@pytest.mark.parametrize("total", [*ONES, 0, -5, 2**62, 2**63])
def test_totals_that_cannot_be_are_not_counted(total: int) -> None:
    free = 0 if total == 0 else 10
    volume = judged(f_blocks=total, f_bfree=free, f_bavail=free)
    assert not volume.counts_bytes and (volume.used_bytes, volume.total_bytes) == (0, 0)
    assert volume.used_percent is None and "not counted" in volume.text()
    volume = judged(f_files=total, f_ffree=free, f_favail=free)
    assert not volume.counts_inodes and volume.counts_bytes


@pytest.mark.parametrize("free", [*ONES, 101, -40])
def test_free_blocks_that_cannot_be_are_not_counted(free: int) -> None:
    assert not judged(f_bfree=free, f_bavail=free).counts_bytes


@pytest.mark.parametrize(
    ("unit", "blocks", "used"),
    [
        (1 << 20, 1 << 43, 5),  # EFS: 8 EiB
        (4096, 1 << 38, 0),  # goofys, rclone: 1 PiB of which nothing is ever used
        (1 << 17, 1 << 33, 0),  # gcsfuse: likewise
        (1 << 24, 1 << 24, 0),  # s3fs: 256 TiB
        (512, 1000 << 21, 0),  # sshfs: 1000 GiB
    ],
)
def test_placeholders_are_no_limit(unit: int, blocks: int, used: int) -> None:
    volume = judged(
        f_bsize=unit,
        f_frsize=unit,
        f_blocks=blocks,
        f_bfree=blocks - used,
        f_bavail=blocks - used,
        f_files=10**9,
        f_ffree=10**9,
        f_favail=10**9,
    )
    assert not volume.counts_bytes and not volume.counts_inodes


def test_a_petabyte_of_which_something_is_used_counts_and_is_doubted() -> None:
    """JuiceFS without a capacity; and who has a quota of just so much."""
    volume = judged(f_blocks=1 << 38, f_bfree=(1 << 38) - 9, f_bavail=(1 << 38) - 9)
    assert volume.counts_bytes and volume.total_bytes == 1 << 50 and "JuiceFS" in volume.doubt
    assert not judged(f_blocks=10**11, f_bfree=10**9, f_bavail=10**9).doubt


def test_an_empty_quota_of_a_terabyte_is_a_limit() -> None:
    """CephFS: a directory with a quota is a volume, at first with nothing in it."""
    blocks = 1 << 18
    volume = judged(
        f_bsize=1 << 22, f_frsize=1 << 22, f_blocks=blocks, f_bfree=blocks, f_bavail=blocks,
        f_files=13, f_ffree=-1, f_favail=-1,
    )  # fmt: skip
    assert volume.counts_bytes and volume.total_bytes == 1 << 40 and volume.used_percent == 0


def test_nothing_free_is_full_not_unknown() -> None:
    for available in (0, -12):  # root has taken of what is kept for it
        volume = judged(f_bfree=0 if available == 0 else 5, f_bavail=available)
        assert volume.counts_bytes and volume.free_bytes == 0 and volume.used_percent == 100
    volume = judged(f_ffree=0, f_favail=0)
    assert volume.counts_inodes and volume.free_inodes == 0 and volume.used_inode_percent == 100
    # All that is free is kept for root.
    assert judged(f_bfree=100, f_bavail=0).used_percent == 100


def test_available_that_cannot_be_is_what_is_free() -> None:
    for available in (50, *ONES[:1]):
        assert judged(f_bavail=available).free_bytes == 40 * 4096


def test_a_fragment_of_no_bytes_is_a_block() -> None:
    assert judged(f_frsize=0).total_bytes == 90 * 4096
    assert judged(f_frsize=-1).total_bytes == 90 * 4096
    assert not judged(f_frsize=0, f_bsize=0).counts_bytes


def test_this_machine_is_judged_as_df_does(tmp_path: Path) -> None:
    import subprocess

    line = ["df", "--output=pcent", str(tmp_path)]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1]
    found = volume_of(tmp_path)
    assert found.used_percent is not None
    assert abs(found.used_percent - int(said.rstrip("%"))) <= 1  # others write meanwhile


@pytest.mark.parametrize(
    ("number", "numbers", "text"),
    [
        (errno.EDQUOT, {}, "quota"),
        (errno.ENOSPC, {"f_ffree": 0, "f_favail": 0}, "no inode is left (ENOSPC): 0 of 1,000"),
        (errno.ENOSPC, {"f_bfree": 0, "f_bavail": 0}, "no block is left (ENOSPC): 0 B of 410 kB"),
        (errno.ENOSPC, {}, "though statvfs says"),
        (errno.EFBIG, {}, "so large"),
    ],
)
def test_the_exhausted_resource_is_named(number: int, numbers: dict[str, int], text: str) -> None:
    message, remedy = why_no_room(number, judged(**numbers), 1000)
    assert text in message and errno.errorcode[number] in message and remedy
    assert os.strerror(number) not in message
