"""A node hashes its weights once; whatever is odd about the cache means hashing again."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf.config import Settings  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.weights import cache as weight_cache  # noqa: E402
from kvshelf.weights import files as weight_files  # noqa: E402
from kvshelf.weights.files import digest_of_files  # noqa: E402


class Node:
    """Two weight files, this user's cache, and a count of hashed files."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.files = [(name, folder / name) for name in ("a.bin", "b.bin")]
        for name, path in self.files:
            path.write_bytes(name.encode() * 100)
        self.hashed = 0

    def digest(self, **settings: Any) -> str:
        given = {"weights_cache_dir": str(self.cache), **settings}
        return digest_of_files(self.files, Settings(**given)).hex

    @property
    def kept(self) -> Path:
        (found,) = self.cache.glob("*.json")
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path)
    hash_all = weight_files._hash_all

    def counted(files: Any) -> list[str]:
        made.hashed += len(files)
        return hash_all(files)

    monkeypatch.setattr(weight_files, "_hash_all", counted)
    # A test's files are new, and nobody can set a ctime.
    monkeypatch.setattr(weight_cache, "RACY_SECONDS", 0.0)
    yield made


def test_the_second_start_hashes_nothing(node: Node) -> None:
    first = node.digest()
    assert node.hashed == 2
    assert node.digest() == first and node.hashed == 2


def test_only_this_user_may_read_the_cache(node: Node) -> None:
    node.digest()
    assert node.cache.stat().st_mode & 0o777 == 0o700
    assert node.kept.stat().st_mode & 0o777 == 0o600


def test_a_file_that_changes_is_hashed_again_and_no_other(node: Node) -> None:
    """Also if its size and its mtime are what they were: nobody can set a ctime."""
    before = node.digest()
    path = node.files[0][1]
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert node.digest() != before
    assert node.hashed == 3


def test_a_file_that_changed_just_now_is_not_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_cache, "RACY_SECONDS", 60.0)
    assert node.digest() == node.digest()
    assert node.hashed == 4 and not list(node.cache.glob("*.json"))


def test_a_file_of_the_future_is_not_kept(node: Node) -> None:
    path = node.files[0][1]
    os.utime(path, (4e9, 4e9))
    node.digest()
    node.digest()
    assert node.hashed == 3


def damage_text(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def damage_digest(path: Path) -> None:
    value = json.loads(path.read_text())
    value["files"] = dict.fromkeys(value["files"], "0" * 64)
    path.write_text(json.dumps(value))


def no_object(path: Path) -> None:
    path.write_text("[" * 100_000)


def readable_by_others(path: Path) -> None:
    path.chmod(0o644)


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def open_folder(path: Path) -> None:
    path.parent.chmod(0o755)


@pytest.mark.parametrize(
    "change",
    [damage_text, damage_digest, no_object, readable_by_others, a_link, a_folder, open_folder],
    ids=lambda change: change.__name__,
)
def test_a_cache_that_is_odd_is_not_believed(node: Node, change: Any) -> None:
    first = node.digest()
    change(node.kept)
    assert node.digest() == first
    assert node.hashed == 4


def test_another_users_cache_is_not_believed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    first = node.digest()
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert node.digest() == first and node.hashed == 4


def test_a_cache_from_before_the_last_boot_is_not(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node.digest()
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(weight_cache, "_BOOT_ID", tmp_path / "boot_id")
    assert node.digest() == first and node.hashed == 4


@pytest.mark.parametrize("hidden", ["absent", "empty"])
def test_where_nobody_can_tell_the_boot_nothing_is_believed(
    node: Node, hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node.digest()
    if hidden == "empty":
        (tmp_path / "boot_id").write_text("")
    monkeypatch.setattr(weight_cache, "_BOOT_ID", tmp_path / "boot_id")
    assert node.digest() == first and node.digest() == first and node.hashed == 6


def test_a_read_that_a_profile_forbids_is_made_otherwise(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node.digest(weights_cache_dir="off")

    def refused(*_: Any) -> int:
        raise PermissionError(1, "preadv2")

    monkeypatch.setattr(os, "preadv", refused)
    assert node.digest(weights_cache_dir="off") == first


@pytest.mark.parametrize("where", ["off", "a file", "no permission"])
def test_without_a_cache_every_start_hashes(node: Node, where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = {"off": "off", "a file": str(tmp_path / "file"), "no permission": "/proc/kvshelf"}[
        where
    ]
    assert node.digest(weights_cache_dir=place) == node.digest(weights_cache_dir=place)
    assert node.hashed == 4


def test_processes_of_a_node_hash_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all ranks do at one time: one hashes, the others wait for it."""
    hash_all, waiting = weight_files._hash_all, threading.Semaphore(0)

    def slow(files: Any) -> list[str]:
        for _ in range(3):  # until the others wait
            assert waiting.acquire(timeout=30)
        return hash_all(files)

    def sleep(_: float) -> None:
        waiting.release()
        threading.Event().wait(0.01)

    monkeypatch.setattr(weight_files, "_hash_all", slow)
    monkeypatch.setattr(weight_cache.time, "sleep", sleep)
    results: list[str] = []
    ranks = [threading.Thread(target=lambda: results.append(node.digest())) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert node.hashed == 2 and len(results) == 4 and len(set(results)) == 1


def test_a_process_does_not_wait_for_ever(node: Node) -> None:
    name = node.digest(), node.kept.stem
    node.kept.unlink()
    lock = os.open(node.cache / f"{name[1]}.lock", os.O_RDWR)
    try:
        weight_cache.fcntl.flock(lock, weight_cache.fcntl.LOCK_EX)
        assert node.digest(weights_wait_seconds=0) == name[0]
    finally:
        os.close(lock)
    assert node.hashed == 4


def test_the_default_place_is_the_users(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    node.digest(weights_cache_dir="")
    assert list((tmp_path / "xdg" / "kvshelf").glob("*.json"))


def test_a_place_that_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights_cache_dir='here'"):
        Settings.from_mapping({"shared_storage_path": "/x", "weights_cache_dir": "here"}, {})
