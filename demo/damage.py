"""Ways in which a file system, an operator or a bug can spoil chunk files.

Each function leaves a new file in the place of the old one, or none; none writes into a file that
an engine may have open, since kvshelf promises nothing about files that are modified in place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HEADER_BYTES = 4096


def chunk_files(shelf: Path) -> set[Path]:
    """All chunk files under a shelf's root, of all namespaces and ranks."""
    return set(shelf.glob("*/r*/*/*.kv"))


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path, _others: Sequence[Path]) -> None:
    """The second half is missing, as after a full disk; the size stays a multiple of 4096."""
    content = path.read_bytes()
    _replace(path, content[: len(content) // 2 // HEADER_BYTES * HEADER_BYTES])


def flip_bit(path: Path, _others: Sequence[Path]) -> None:
    """One bit in the middle of the payload: the top bit of a float32's exponent.

    Served, it would show: a bit of the fraction moves logprobs less than recomputing does.
    """
    content = bytearray(path.read_bytes())
    middle = (HEADER_BYTES + len(content)) // 2
    content[middle // 4 * 4 + 3] ^= 0x40  # little-endian: the number's last byte
    _replace(path, bytes(content))


def swap_key(path: Path, others: Sequence[Path]) -> None:
    """A sound chunk file, but another key's."""
    _replace(path, next(other for other in others if other != path).read_bytes())


def zero_header(path: Path, _others: Sequence[Path]) -> None:
    """The header page is zero and the payload whole, as after a lost write."""
    _replace(path, bytes(HEADER_BYTES) + path.read_bytes()[HEADER_BYTES:])


def delete(path: Path, _others: Sequence[Path]) -> None:
    """Gone: to an engine that has looked the chunk up and trusts that, deleted after lookup."""
    path.unlink()


Damage = Callable[[Path, Sequence[Path]], None]

DAMAGES: dict[str, Damage] = {
    "truncated": truncate,
    "bit flipped": flip_bit,
    "another key's file": swap_key,
    "header zeroed": zero_header,
    "deleted after lookup": delete,
}


@contextmanager
def unreadable(shelf: Path) -> Iterator[None]:
    """For as long as this lasts, every open() under the shelf's namespaces fails, for root too.

    Root ignores permissions, so a regular file takes the place of each namespace's folder
    (ENOTDIR), which no lookup can mistake for an absent chunk.
    """
    folders = [path for path in shelf.iterdir() if path.is_dir()]
    aside = shelf.with_name(shelf.name + ".aside")
    aside.mkdir()
    for folder in folders:
        folder.rename(aside / folder.name)
        folder.write_bytes(b"")
    try:
        yield
    finally:
        for folder in folders:
            if folder.is_dir():
                shutil.rmtree(folder)
            else:
                folder.unlink(missing_ok=True)
            (aside / folder.name).rename(folder)
        aside.rmdir()
