"""A lease or a journal that cannot be used is told, and does no more harm than it must."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvshelf.disk.root import open_root
from kvshelf.upkeep.evict.journal import RemovedWriter
from kvshelf.upkeep.evict.turn import Turn


class Lease:
    token = "0123456789abcdef"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def tick(self) -> bool:
        if self.error is not None:
            raise self.error
        return True

    def release(self) -> None:
        self.tick()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_root(tmp_path / "shelf")


def turn_with(root: Path, error: Exception | None = None) -> tuple[Turn, list[str]]:
    """A turn, and what it tells."""
    told: list[str] = []
    turn = Turn(
        root,
        lease_seconds=10,
        on_fault=lambda what, error: told.append(f"{what}: {error}"),
        lease=Lease(error),  # type: ignore[arg-type]
    )
    return turn, told


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (OSError(errno.EIO, "storage"), False),
        (OSError(errno.ENOSPC, "full"), True),  # else a full disk would stay full
        (OSError(errno.EDQUOT, "full"), True),
        (ValueError("a name"), False),
    ],
)
def test_a_lease_that_fails_is_told_and_nobodys_unless_the_disk_is_full(
    root: Path, error: Exception, ours: bool
) -> None:
    turn, told = turn_with(root, error)
    assert turn.is_ours() is ours
    turn.leave()
    assert told == [f"lease: {error}"] * 2


def test_a_journal_that_fails_does_not_stop_eviction(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "storage")

    monkeypatch.setattr(RemovedWriter, "clean", fail)
    monkeypatch.setattr(RemovedWriter, "append", fail)
    turn, told = turn_with(root)
    assert turn.is_ours() and turn.is_ours()  # cleaned once a minute
    turn.removed("model-0123456789ab", 0, [b"k" * 36])
    assert told == ["journal: [Errno 5] storage"] * 2
