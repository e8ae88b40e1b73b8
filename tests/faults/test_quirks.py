"""File systems with quirks: doctor says what engines meet, and engines do what can be done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf.config import Settings
from kvshelf.disk.keys import make_key
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root
from kvshelf.doctor.findings import Severity
from kvshelf.doctor.semantics import check_semantics
from kvshelf.doctor.trial import check_trial
from kvshelf.engine import Durability, EngineConfig
from kvshelf.engine.probe import Naming, probe
from kvshelf.errors import ConfigError
from kvshelf.shelf import Chunk, Shelf
from tests.faults.test_seccomp import GOOD
from tests.harness.quirk_mount import REPOSITORY, QuirkMount, quirk_mount
from tests.harness.shelf_work import CHUNKS, store_and_load

IDENTITY = Identity({"model": "quirks"})


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[QuirkMount]:
    with quirk_mount(tmp_path) as mounted:
        yield mounted


def findings(folder: Path, **options: Any) -> dict[str, tuple[Severity, str]]:
    return {
        finding.check: (finding.severity, finding.message)
        for finding in check_semantics(folder, **options)
    }


def scratch(mount: QuirkMount) -> Path:
    folder = mount.path / "scratch"
    folder.mkdir()
    return folder


def doctor(root: Path, *more: str) -> tuple[int, dict[str, Any]]:
    line = [sys.executable, "-m", "kvshelf.cli", "doctor", str(root), "--quick", "--json", *more]
    done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    return done.returncode, json.loads(done.stdout)


# S2: RENAME_NOREPLACE


@pytest.mark.parametrize("number", ["EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM", "ENOTTY"])
def test_without_rename_flags_link_will_do(mount: QuirkMount, number: str) -> None:
    mount.set(errors={"rename_flags": number})
    severity, message = findings(scratch(mount))["publication"]
    assert severity is Severity.FINE and message.startswith("link(2)")
    assert store_and_load(mount.path / "shelf", "none") == GOOD
    _, report = doctor(mount.path / "shelf")
    assert report["settings"] is not None


@pytest.mark.parametrize("number", ["EPERM", "ENOSYS", "EOPNOTSUPP", "EMLINK"])
def test_without_links_too_a_plain_rename_is_warned_of(mount: QuirkMount, number: str) -> None:
    mount.set(errors={"rename_flags": "EINVAL", "link": number})
    severity, message = findings(scratch(mount))["publication"]
    assert severity is Severity.WARNING and "plain rename" in message
    assert store_and_load(mount.path / "shelf", "none") == GOOD


def test_without_any_way_to_a_name_stores_fail_and_doctor_says_so(mount: QuirkMount) -> None:
    mount.set(errors={"rename_flags": "EINVAL", "link": "EPERM", "rename": "EIO"})
    folder = scratch(mount)
    severity, message = findings(folder)["publication"]
    assert severity is Severity.PROBLEM and "stored: Input/output error" in message
    status, report = doctor(mount.path / "scratch" / "..")
    assert status == 1 and report["settings"] is None


def test_the_kernels_own_answer_for_a_taken_name_says_nothing_of_the_mount(
    mount: QuirkMount,
) -> None:
    mount.set(errors={"rename_flags": "EINVAL"})
    report = probe(scratch(mount))
    assert report.naming is Naming.LINK and report.stored_again.ok and not report.replaced


# S24: writes in order


@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP", "ESPIPE", "EPERM", "EIO"])
def test_a_mount_that_takes_writes_in_order_is_served(mount: QuirkMount, number: str) -> None:
    mount.set(errors={"write_gap": number, "fallocate": "EOPNOTSUPP"})
    found = findings(scratch(mount))
    assert found["publication"][0] is Severity.FINE
    assert "end" in found["writes"][1] and found["writes"][0] is Severity.NOTE
    assert store_and_load(mount.path / "shelf", "none") == GOOD
    assert check_trial(mount.path / "shelf").severity is Severity.FINE
    assert not list(mount.path.rglob("*.tmp"))


def test_a_mount_that_takes_gaps_but_no_overwriting_is_served(mount: QuirkMount) -> None:
    mount.set(errors={"write_back": "EINVAL", "fallocate": "EOPNOTSUPP"})
    assert store_and_load(mount.path / "shelf", "none") == GOOD
    found = findings(scratch(mount))
    assert found["publication"][0] is Severity.FINE and found["writes"][0] is Severity.NOTE
    assert not list(mount.path.rglob("*.tmp"))


def test_room_that_is_reserved_does_not_hide_the_order(mount: QuirkMount) -> None:
    mount.set(errors={"write_gap": "EINVAL"})
    assert store_and_load(mount.path / "shelf", "full") == GOOD


@pytest.mark.parametrize("write_behind", [True, False])
def test_in_order_chunks_of_every_length(mount: QuirkMount, write_behind: bool) -> None:
    mount.set(errors={"write_gap": "EINVAL"})
    blocks, block_bytes = 40, 50_001
    memory = np.zeros((2 * blocks, block_bytes), np.uint8)
    memory[:blocks] = np.random.default_rng(2).integers(0, 255, (blocks, block_bytes), np.uint8)
    config = EngineConfig(io_threads=3, write_behind=write_behind, piece_bytes=256 << 10)
    # Of 1, 2, 7 and 30 blocks: less than a step, and several pieces.
    ends = np.cumsum([1, 2, 7, 30])
    parts = [range(end - size, end) for end, size in zip(ends, [1, 2, 7, 30], strict=True)]
    keys = [make_key(bytes([i]) * 16, 0) for i in range(len(parts))]
    with Shelf.of_arrays(mount.path / "shelf", IDENTITY, memory, config=config) as shelf:
        stored = shelf.store([Chunk(key, part) for key, part in zip(keys, parts, strict=True)])
        assert {status.name for status in stored} == {"OK"}
        loaded = shelf.load(
            [Chunk(key, [blocks + i for i in part]) for key, part in zip(keys, parts, strict=True)]
        )
        assert {status.name for status in loaded} == {"OK"}
    assert np.array_equal(memory[:blocks], memory[blocks:])


def test_a_mount_that_takes_no_writes_is_a_problem(mount: QuirkMount) -> None:
    mount.set(errors={"write": "EINVAL"})
    folder = scratch(mount)
    assert probe(folder).stored.ok is False
    severity, message = findings(folder)["publication"]
    assert severity is Severity.PROBLEM and "Invalid argument" in message


def test_a_quota_that_is_full_is_a_problem_by_name(mount: QuirkMount) -> None:
    mount.set(quota_bytes=1000)
    severity, message = findings(scratch(mount))["publication"]
    assert severity is Severity.PROBLEM and "quota" in message


# S27: fallocate


def test_allocation_is_asked_for_by_the_call_that_is_used(mount: QuirkMount) -> None:
    mount.set(errors={"fallocate": "EOPNOTSUPP"})
    severity, message = findings(scratch(mount))["allocation"]
    assert severity is Severity.NOTE and "not here" in message


# S18: fsync


@pytest.mark.parametrize("number", ["EIO", "ENOENT", "EINVAL", "EBADF", "EACCES"])
@pytest.mark.parametrize("call", ["fsyncdir", "fsync"])
def test_no_sync_is_missed_that_was_not_asked_for(
    mount: QuirkMount, call: str, number: str
) -> None:
    mount.set(errors={call: number})
    assert store_and_load(mount.path / "shelf", "none") == GOOD


def test_where_nothing_can_be_synced_doctor_says_which_durability_works(mount: QuirkMount) -> None:
    mount.set(errors={"fsyncdir": "EIO"})
    folder = scratch(mount)
    severity, message = findings(folder)["sync"]
    assert severity is Severity.NOTE and "none or data" in message
    assert findings(folder, durability="data")["sync"][0] is Severity.NOTE
    assert findings(folder, durability="full")["sync"][0] is Severity.PROBLEM
    mount.set(errors={"fsync": "EIO"})
    assert findings(folder, durability="data")["sync"][0] is Severity.PROBLEM
    settings = Settings.from_mapping({"shared_storage_path": "/x", "durability": "data"}, {})
    assert "fsync" in check_trial(folder / "shelf", settings).message


@pytest.mark.parametrize("number", ["EIO", "EINVAL", "ENOENT"])
@pytest.mark.parametrize(
    ("durability", "call", "what"),
    [("full", "fsyncdir", "folder"), ("full", "fsync", "kvshelf.json"), ("data", "fsync", "json")],
)
def test_a_sync_that_is_asked_for_and_refused_is_the_reason(
    mount: QuirkMount, durability: str, call: str, what: str, number: str
) -> None:
    mount.set(errors={call: number})
    with pytest.raises(ConfigError, match="fsync") as caught:
        open_root(mount.path / "shelf", durability=durability)
    assert caught.value.setting == "durability" and caught.value.value == durability
    assert what in caught.value.allowed and "none" in caught.value.allowed
    config = EngineConfig(durability=Durability(durability))
    with pytest.raises(ConfigError, match="fsync"):
        Shelf(mount.path / "other", IDENTITY, config=config)


def test_data_needs_no_sync_of_folders(mount: QuirkMount) -> None:
    mount.set(errors={"fsyncdir": "EIO"})
    assert store_and_load(mount.path / "shelf", "data") == GOOD


def test_a_namespace_is_synced_as_asked(mount: QuirkMount) -> None:
    root = open_root(mount.path / "shelf")
    mount.set(errors={"fsync": "EIO"})
    assert open_namespace(root, Identity({"model": "a"})).is_dir()
    with pytest.raises(ConfigError, match=r"namespace\.json"):
        open_namespace(root, Identity({"model": "b"}), durability="data")


# S17: writability


def test_writing_is_tried_not_asked(mount: QuirkMount) -> None:
    mount.set(errors={"access": "EPERM"})
    assert store_and_load(mount.path / "shelf", "none") == GOOD
    mount.set(errors={"create": "EACCES"})
    with pytest.raises(ConfigError, match="not writable"):
        open_root(mount.path / "shelf")
    status, report = doctor(mount.path / "shelf")
    messages = [finding["message"] for finding in report["findings"]]
    assert status == 1 and any("no file can be made" in message for message in messages)


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
def test_a_full_shelf_is_opened(mount: QuirkMount, number: str) -> None:
    assert store_and_load(mount.path / "shelf", "none") == GOOD
    mount.set(errors={"create": number})
    assert open_root(mount.path / "shelf").is_dir()
    assert len(list((mount.path / "shelf").rglob("*.kv"))) == CHUNKS
