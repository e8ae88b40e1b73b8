"""Storage that fails: a finding of its own, and no reason to remove anything."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.upkeep.scrub import scrubber
from kvshelf.upkeep.scrub.findings import Action, Kind
from tests.faults.mount import FaultyMount, why_not
from tests.upkeep.scrub.shelves import chunks, everything, found, scrubbed

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture
def mounted(mount: FaultyMount, filled_shelf: Path) -> Iterator[Path]:
    root = mount.path / f"shelf-{next(COUNT)}"
    shutil.copytree(filled_shelf, root)
    assert found(root) == []
    yield root
    mount.set()


COUNT = itertools.count()


@pytest.mark.parametrize("fault", ["read", "open", "stat"])
def test_a_file_that_cannot_be_read_is_kept(mounted: Path, mount: FaultyMount, fault: str) -> None:
    path = chunks(mounted)[3]
    before = everything(mounted)
    mount.set(match=path.name, **{fault: "EIO"})
    findings, run = scrubbed(mounted)
    mount.set()
    name = str(path.relative_to(mounted))
    assert [(f.kind, f.path, f.action) for f in findings] == [(Kind.FAULT, name, Action.KEPT)]
    assert "Input/output error" in findings[0].detail and run.totals.finished
    assert everything(mounted) == before and found(mounted) == []


def test_a_folder_that_cannot_be_listed_is_kept(mounted: Path, mount: FaultyMount) -> None:
    mount.set(match="r0", readdir="EIO")
    findings = found(mounted)
    mount.set()
    assert [(kind, action) for kind, _, action in findings] == [(Kind.FAULT, Action.KEPT)]
    assert found(mounted) == [] and len(chunks(mounted)) == 8


def test_a_file_that_is_gone_on_the_server_is_no_finding(mounted: Path, mount: FaultyMount) -> None:
    mount.set(match=chunks(mounted)[3].name, read="ESTALE")
    findings, run = scrubbed(mounted)
    mount.set()
    assert findings == [] and run.totals.vanished == 1 and len(chunks(mounted)) == 8


def test_a_bad_file_that_cannot_be_removed_is_said_to_be_bad(
    mounted: Path, mount: FaultyMount
) -> None:
    path = chunks(mounted)[3]
    path.write_bytes(b"damaged")
    mount.set(match=path.name, unlink="EIO")
    kept = [(kind, action) for kind, _, action in found(mounted)]
    assert kept == [(Kind.CORRUPT, Action.KEPT)] and path.exists()
    mount.set()
    assert [kind for kind, _, _ in found(mounted)] == [Kind.CORRUPT] and not path.exists()


def test_bytes_that_are_damaged_on_their_way_are_not_the_files_fault(
    mounted: Path, mount: FaultyMount
) -> None:
    """One read in so many is wrong, and right when it is done again."""
    before = everything(mounted)
    unsteady = 0
    for seed in range(20):
        mount.set(match="*.kv", flip_read_bit=True, probability=0.02, seed=seed)
        findings = found(mounted)
        assert {kind for kind, _, _ in findings} <= {Kind.UNSTEADY, Kind.PADDING}
        assert {action for _, _, action in findings} <= {Action.KEPT}
        unsteady += sum(kind is Kind.UNSTEADY for kind, _, _ in findings)
    mount.set()
    assert unsteady > 0 and everything(mounted) == before


def test_storage_that_fails_always_is_left_alone(
    mounted: Path, mount: FaultyMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubber, "FAULTS_MAX", 4)
    mount.set(match="*.kv", read="EIO")
    findings, run = scrubbed(mounted)
    mount.set()
    assert len(findings) == 6 and "stopped" in findings[-1].detail
    assert not run.totals.finished and len(chunks(mounted)) == 8
    assert found(mounted) == []


def test_a_shelf_that_cannot_be_written_to_is_scrubbed_all_the_same(
    mounted: Path, mount: FaultyMount
) -> None:
    chunks(mounted)[3].write_bytes(b"damaged")
    mount.set(create="ENOSPC", match=".*")
    assert [kind for kind, _, _ in found(mounted)] == [Kind.CORRUPT]
    mount.set()
    assert len(chunks(mounted)) == 7


def test_short_reads_are_no_damage(mounted: Path, mount: FaultyMount) -> None:
    mount.set(match="*.kv", short_read=0.3)
    assert found(mounted) == []
