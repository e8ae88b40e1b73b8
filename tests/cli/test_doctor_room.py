"""What ``kvshelf doctor``, ``du``, ``top`` and ``bench`` say of a volume's room: as it is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli.main import main
from kvshelf.disk.root import open_root
from tests.harness.loop_mount import loop_mount
from tests.harness.quirk_mount import quirk_mount

NOTHING = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"), 0)
MB = 1 << 20


def doctor(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """The worst finding of each check. This machine's few cores are a finding too."""
    assert main(["doctor", str(root), "--quick", "--json"]) in (0, 1)
    ranks = ("fine", "note", "warning", "problem")
    found: dict[str, dict[str, Any]] = {}
    for each in json.loads(capsys.readouterr().out)["findings"]:
        old = found.get(each["check"])
        if old is None or ranks.index(each["severity"]) > ranks.index(old["severity"]):
            found[each["check"]] = each
    return found


def fill(folder: Path, *, inodes: bool) -> None:
    folder.mkdir()
    with contextlib.suppress(OSError):
        if inodes:
            for number in range(100_000):
                (folder / str(number)).touch()
        with (folder / "bytes").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))


def test_no_inode_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop_mount(tmp_path, "ext4", 64, mkfs=("-m", "0", "-N", "64")) as volume:
        root = open_root(volume / "shelf")
        fill(volume / "others", inodes=True)
        found = doctor(root, capsys)
    assert "no inode is left (ENOSPC): 0 of " in found["room"]["message"]
    assert "inodes" in found["room"]["remedy"] and found["room"]["severity"] == "problem"
    assert "none is left: 0 of " in found["inodes"]["message"]


def test_no_block_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with loop_mount(tmp_path, "ext4", 64, mkfs=("-m", "0")) as volume:
        root = open_root(volume / "shelf")
        fill(volume / "others", inodes=False)
        found = doctor(root, capsys)
    said = found["room"]["message"]
    # ext4 counts some kB as free that it has promised already.
    assert "left (ENOSPC): " in said and " MB free, 100% used" in said
    assert "not counted" not in found["inodes"]["message"]


def test_a_full_quota_is_found_by_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with quirk_mount(tmp_path, volume_bytes=1 << 30, quota_bytes=4 * MB) as mount:
        found = doctor(mount.path, capsys)
        assert "quota" in found["room"]["message"] and "EDQUOT" in found["room"]["message"]
        assert "1.07 GB of 1.07 GB free" in found["room"]["message"]
        assert not list(mount.path.iterdir())  # nothing stays
        mount.set(volume_bytes=1 << 30)
        assert doctor(mount.path, capsys)["write"]["severity"] == "fine"


def test_cephs_free_inodes_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statvfs = {"f_files": 12, "f_ffree": 2**64 - 1, "f_favail": 2**64 - 1}
    with quirk_mount(tmp_path, volume_bytes=1 << 30, statvfs=statvfs) as mount:
        root = open_root(mount.path / "shelf")
        found = doctor(root, capsys)
        assert found["inodes"]["severity"] == "fine" and "not counted" in found["inodes"]["message"]
        assert main(["ls", str(root), "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert value["free_inodes"] is None and value["free_bytes"] > 0


def test_where_room_is_not_told_bench_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with quirk_mount(tmp_path, statvfs=NOTHING) as mount:
        found = doctor(mount.path, capsys)
        assert found["room"]["severity"] == "note" and "0 of 0" in found["room"]["message"]
        assert "evict_shelf_gb" in found["room"]["remedy"]
        line = ["bench", str(mount.path), "--size", "4MB", "--chunk-size", "1MB", "--rounds", "1"]
        assert main([*line, "--only", "store", "--threads", "1"]) == 0
        root = open_root(mount.path / "shelf")
        capsys.readouterr()
        for command, *flags in (("ls", "--sizes"), ("top", "--once", "--every", "0.1")):
            line = [command, str(root), *flags]
            assert main([*line, "--json"]) == 0
            out = capsys.readouterr().out
            value = json.loads(out.splitlines()[-1] if command == "top" else out)
            assert value["free_bytes"] is None and value["used_percent"] is None
            assert main(line) == 0 and "room not counted" in capsys.readouterr().out


def test_reserved_blocks_count_as_df_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with loop_mount(tmp_path, "ext4", 128, mkfs=("-m", "20")) as volume:
        root = open_root(volume / "shelf")
        (volume / "others").write_bytes(bytes(50 * MB))
        os.sync()
        line = ["df", "--output=pcent", str(root)]
        said = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1]
        assert f"{said} used" in doctor(root, capsys)["room"]["message"]
        assert main(["top", str(root), "--once", "--every", "0.1"]) == 0
        assert f"{said} used" in capsys.readouterr().out
        assert main(["ls", "--sizes", str(root)]) == 0
        assert f"{said} used" in capsys.readouterr().out
        assert main(["evict", str(root), "--once", "--json"]) == 0
        value = json.loads(capsys.readouterr().out)
        assert f"{value['volume']['used_percent']}%" == said


def test_a_bench_that_meets_a_quota_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with quirk_mount(tmp_path, volume_bytes=1 << 30, quota_bytes=3 * MB) as mount:
        line = ["bench", str(mount.path), "--size", "8MB", "--chunk-size", "1MB", "--rounds", "1"]
        assert main([*line, "--only", "store", "--threads", "1"]) == 1
        assert "quota" in capsys.readouterr().err
        assert not list(mount.path.iterdir())
