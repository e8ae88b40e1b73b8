"""The journal of removed chunks: what one process appends others read, once and whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf.disk.layout import REMOVED_FOLDER, RemovedName, parse_removed_name
from kvshelf.disk.root import open_root
from kvshelf.upkeep.evict import journal
from kvshelf.upkeep.evict.journal import MAGIC, RemovedReader, RemovedWriter

FOLDER, OTHER = "model-0123456789ab", "model_2-ba9876543210"
TOKEN = "0123456789abcdef"
KEYS = [bytes([i]) * 36 for i in range(20)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_root(tmp_path / "shelf")


def files(root: Path) -> list[Path]:
    return sorted((root / REMOVED_FOLDER).iterdir())


def test_readers_get_what_is_appended_after_they_began(root: Path) -> None:
    writer = RemovedWriter(root, TOKEN)
    late, early = RemovedReader(root, FOLDER), RemovedReader(root, FOLDER)
    assert early.read() == []
    writer.append(FOLDER, KEYS[:3])
    writer.append(OTHER, KEYS[5:6])
    assert late.read() == []  # it begins here
    assert early.read() == KEYS[:3]
    writer.append(FOLDER, KEYS[3:5])
    assert late.read() == early.read() == KEYS[3:5]
    assert early.read() == []


def test_each_writer_has_files_of_its_own(root: Path) -> None:
    reader = RemovedReader(root, FOLDER)
    reader.read()
    for number in range(4):
        RemovedWriter(root, f"{number:016x}").append(FOLDER, [KEYS[number]])
    assert sorted(reader.read()) == KEYS[:4]
    assert len(files(root)) == 4


def test_a_key_that_is_there_twice_is_told_once(root: Path) -> None:
    """Of every rank there is a file."""
    reader = RemovedReader(root, FOLDER)
    reader.read()
    writer = RemovedWriter(root, TOKEN)
    for _ in range(2):
        writer.append(FOLDER, KEYS[:2])
    assert reader.read() == KEYS[:2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=8), st.lists(st.binary(min_size=12, max_size=128)))
def test_a_file_that_is_read_while_it_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], keys: list[bytes]
) -> None:
    root = open_root(tmp_path_factory.mktemp("grow"))
    data = MAGIC + b"".join(bytes((len(key),)) + key for key in keys)
    reader = RemovedReader(root, FOLDER)
    reader.read()
    (root / REMOVED_FOLDER).mkdir()
    path = root / REMOVED_FOLDER / str(RemovedName(FOLDER, TOKEN, 0))
    read: list[bytes] = []
    for end in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        path.write_bytes(data[:end])
        read += reader.read()
    assert list(dict.fromkeys(read)) == list(dict.fromkeys(keys))
    assert reader.damaged == 0


@pytest.mark.parametrize("data", [b"x" * 100, MAGIC + b"\x05" + b"y" * 50, MAGIC + b"\xff" * 200])
def test_something_else_is_left_alone(root: Path, data: bytes) -> None:
    reader = RemovedReader(root, FOLDER)
    reader.read()
    RemovedWriter(root, "f" * 16).append(FOLDER, KEYS[:1])
    (root / REMOVED_FOLDER / str(RemovedName(FOLDER, TOKEN, 0))).write_bytes(data)
    (root / REMOVED_FOLDER / str(RemovedName(FOLDER, TOKEN, 1))).symlink_to("/etc/passwd")
    os.mkfifo(root / REMOVED_FOLDER / str(RemovedName(FOLDER, TOKEN, 2)))
    (root / REMOVED_FOLDER / "notes.txt").write_text("mine")
    assert reader.read() == KEYS[:1]
    assert reader.damaged == 1
    RemovedWriter(root, "f" * 16).append(FOLDER, KEYS[1:2])
    assert reader.read() == KEYS[1:2]


def test_nothing_is_written_behind_a_torn_record(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up within the first write of a file takes fewer bytes."""
    reader = RemovedReader(root, FOLDER)
    reader.read()
    writer, write = RemovedWriter(root, TOKEN), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:-5]))
        writer.append(FOLDER, KEYS[:2])
    writer.append(FOLDER, KEYS[2:4])
    assert len(files(root)) == 2
    assert sorted(reader.read()) == sorted([KEYS[0], *KEYS[2:4]])


def test_parts_are_closed_when_they_are_large(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PART_BYTES_MAX", 100)
    reader = RemovedReader(root, FOLDER)
    reader.read()
    writer = RemovedWriter(root, TOKEN)
    for key in KEYS:
        writer.append(FOLDER, [key])
    assert len(files(root)) == 7
    assert all(path.stat().st_size < 140 for path in files(root))
    assert sorted(reader.read()) == KEYS


def test_one_call_reads_a_part_of_much(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "READ_BYTES_MAX", 200)
    reader = RemovedReader(root, FOLDER)
    reader.read()
    RemovedWriter(root, TOKEN).append(FOLDER, KEYS)
    read = [reader.read() for _ in range(6)]
    assert [key for keys in read for key in keys] == KEYS
    assert max(map(len, read)) <= 6


def test_what_nobody_appends_to_is_cleaned(root: Path) -> None:
    now = 0.0
    cleaner = RemovedWriter(root, TOKEN, clock=lambda: now)
    others = [RemovedWriter(root, f"{i:016x}", clock=lambda: now) for i in range(2)]
    assert cleaner.clean() == 0
    for other in others:
        other.append(FOLDER, KEYS[:1])
    (root / REMOVED_FOLDER / "notes.txt").write_text("mine")
    for path in files(root):
        os.utime(path, (1, 1))  # nobody's clock counts but the cleaner's
    assert cleaner.clean() == 0
    now = journal.KEEP_SECONDS - 1
    others[1].append(FOLDER, KEYS[1:2])  # a new part: the old one may be cleaned any time
    assert cleaner.clean() == 0
    now = journal.KEEP_SECONDS + 1
    assert cleaner.clean() == 2
    assert [path.name for path in files(root)] == [
        str(RemovedName(FOLDER, f"{1:016x}", 1)),
        "notes.txt",
    ]


def test_too_much_is_cleaned_before_its_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PART_BYTES_MAX", 100)
    monkeypatch.setattr(journal, "TOTAL_BYTES_MAX", 400)
    now = 0.0
    writer = RemovedWriter(root, TOKEN, clock=lambda: now)
    for key in KEYS:
        now += 1
        writer.append(FOLDER, [key])
        writer.clean()
        assert sum(path.stat().st_size for path in files(root)) <= 400 + 130
    kept = [parse_removed_name(path.name) for path in files(root)]
    assert max(name.part for name in kept if name) == 6  # the last ones stay


def test_what_cannot_be_removed_does_not_keep_the_rest(root: Path) -> None:
    now = [0.0]
    writer = RemovedWriter(root, TOKEN, clock=lambda: now[0])
    writer.append(FOLDER, KEYS[:1])
    ours = files(root)
    refused = root / REMOVED_FOLDER / ours[0].name.replace(TOKEN, "f" * 16)
    refused.mkdir()  # as another user's file in a folder with the sticky bit
    os.utime(refused, (0, 0))
    writer.clean()
    now[0] = journal.KEEP_SECONDS + 1
    with pytest.raises(OSError, match="directory"):
        writer.clean()
    assert files(root) == [refused]
