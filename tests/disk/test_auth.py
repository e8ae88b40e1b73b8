"""The authentication key: its file, and its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshelf.disk.auth import key_id, read_key
from kvshelf.errors import ConfigError

SECRET = bytes(range(32))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_key_is_the_file_without_its_line_end(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET + end)
    assert read_key(path) == SECRET


@pytest.mark.parametrize("size", [0, 31, 4097, 10_000])
def test_a_key_of_another_size_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"x" * size)
    with pytest.raises(ConfigError, match=r"auth_key_file=.*: a file of 32 to 4096 bytes"):
        read_key(path)


def test_the_longest_key_may_have_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"x" * 4096 + b"\n")
    assert read_key(path) == b"x" * 4096


@pytest.mark.parametrize("name", ["absent", ".", "\0"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth_key_file=.*: a readable file"):
        read_key(f"{tmp_path}/{name}")


def test_the_name_of_a_key_is_short_and_its_own() -> None:
    assert key_id(SECRET) == key_id(SECRET)
    assert key_id(SECRET) != key_id(SECRET[:-1] + b"x")
    assert len(key_id(SECRET)) == 16 and SECRET.hex()[:16] != key_id(SECRET)
