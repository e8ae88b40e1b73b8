"""Writes the test vectors: chunk files of known bytes and what each must read as.

Run it as ``python -m tests.vectors.make``; it writes beside itself, the same bytes every time.
It shares no code with either codec and takes every offset from docs/format.md, so that the vectors
judge both; tags are by another library than the native core's. A case is one wish (whose chunk,
which blocks) on one file:

    vectors.json  cases for Python; the payload's SHA-256
    vectors.tsv   the same for C++: no JSON, no SHA-256; the payload's CRC-64, the geometry
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.vectors.pieces import bf16, crc64, noise, packed

PAGE = 4096
NAMESPACE = hashlib.sha256(b"kvshelf test vectors").digest()
KEY = hashlib.sha256(b"a chunk").digest() + b"\0\0\0\1"
# Offset and width of the numbers of a header page, as docs/format.md lists them.
FIELDS = {
    "version": (8, 4),
    "header_bytes": (12, 4),
    "payload_bytes": (24, 8),
    "piece_bytes": (32, 4),
    "piece_count": (36, 4),
    "block_bytes": (40, 8),
    "first_block": (48, 4),
    "block_count": (52, 4),
    "geometry": (56, 8),
    "key_bytes": (96, 2),
    "authentication": (98, 2),
    "rank": (100, 4),
}
PACKING = (280, 4)  # of version 2


def geometry(pages: tuple[int, ...]) -> int:
    packed = b"".join(size.to_bytes(8, "little") for size in pages)
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "little")


@dataclass(frozen=True)
class Chunk:
    """A chunk file to be: pages of a block, the blocks that it holds, its piece size."""

    label: str
    pages: tuple[int, ...]
    block_count: int
    first_block: int = 0
    key: bytes = KEY
    piece_bytes: int = PAGE
    secret: bytes = b""
    packs: bool = False

    @property
    def payload(self) -> bytes:
        return (bf16 if self.packs else noise)(self.label, sum(self.pages) * self.block_count)

    def wanted(self, first: int, count: int) -> bytes:
        block = sum(self.pages)
        return self.payload[(first - self.first_block) * block :][: count * block]

    @property
    def pieces(self) -> list[bytes]:
        """Each piece as the file has it."""
        payload, size = self.payload, self.piece_bytes
        pieces = [payload[i : i + size] for i in range(0, len(payload), size)]
        return [packed(piece) for piece in pieces] if self.packs else pieces

    def file(self, **changes: int) -> bytes:
        """The file; ``changes`` overwrite fields of the header before it is sealed."""
        pieces = self.pieces
        values = {
            "version": 2 if self.packs else 1,
            "header_bytes": PAGE,
            "payload_bytes": len(self.payload),
            "piece_bytes": self.piece_bytes,
            "piece_count": len(pieces),
            "block_bytes": sum(self.pages),
            "first_block": self.first_block,
            "block_count": self.block_count,
            "geometry": geometry(self.pages),
            "key_bytes": len(self.key),
            "authentication": 1 if self.secret else 0,
            "rank": 2,
        } | changes
        page = bytearray(PAGE)
        page[:8] = b"KVSHELF\n"
        for name, (offset, width) in FIELDS.items():
            page[offset : offset + width] = values[name].to_bytes(width, "little")
        page[64:96] = NAMESPACE
        page[104 : 104 + len(self.key)] = self.key
        if self.packs:
            page[PACKING[0] : sum(PACKING)] = changes.get("packing", 1).to_bytes(4, "little")
            for index, piece in enumerate(pieces):
                page[2560 + 4 * index : 2564 + 4 * index] = len(piece).to_bytes(4, "little")
        if self.secret:
            salt = noise(f"salt of {self.label}", 32)
            page[232:264] = salt
            for index, piece in enumerate(pieces):
                page[512 + 16 * index : 528 + 16 * index] = gmac(self.secret, salt, index, piece)
            page = tagged(page, self.secret)
        else:
            for index, piece in enumerate(pieces):
                page[512 + 8 * index : 520 + 8 * index] = crc64(piece).to_bytes(8, "little")
        return sealed(page) + b"".join(piece + bytes(-len(piece) % PAGE) for piece in pieces)


def tagged(page: bytes | bytearray, secret: bytes) -> bytearray:
    """The page with its header tag made right."""
    blank = bytes(page[:16]) + bytes(8) + bytes(page[24:264]) + bytes(16) + bytes(page[280:])
    tag = gmac(secret, blank[232:264], 2**32 - 1, blank)
    return bytearray(blank[:264] + tag + blank[280:])


def gmac(secret: bytes, salt: bytes, index: int, message: bytes) -> bytes:
    """The 16 bytes of a tag."""
    file_key = hmac.digest(secret, b"kvshelf chunk 1" + salt, "sha256")
    return AESGCM(file_key).encrypt(index.to_bytes(4, "little") + bytes(8), b"", message)


def sealed(page: bytes | bytearray) -> bytes:
    blank = bytes(page[:16]) + bytes(8) + bytes(page[24:])
    return blank[:16] + crc64(blank).to_bytes(8, "little") + blank[24:]


def flipped(data: bytes, offset: int, bit: int = 3) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]


@dataclass(frozen=True)
class Wish:
    """What a reader asks of a file, and what it must get."""

    name: str
    file: str
    pages: tuple[int, ...]
    first_block: int
    block_count: int
    status: str
    payload: bytes = b""
    namespace: bytes = NAMESPACE
    key: bytes = KEY
    rank: int = 2
    secret: bytes = b""


# Four pieces, the last of 212 bytes; blocks and pieces never end together.
SEVERAL = Chunk("several", (1000, 1500), 5)
WINDOW = Chunk("window", (1000, 1500), 2, first_block=3)
# One small piece: the header is what these are about.
SMALL = Chunk("small", (300, 400), 2)
# Two pieces, tags in place of checksums.
SECRET = noise("secret", 32)
KEYED = Chunk("keyed", (1000, 1500), 3, secret=SECRET)
# Three packed pieces and one of 212 bytes that is not; of the keyed one, one of each.
PACKED = Chunk("packed", (1000, 1500), 5, packs=True)
SMALL_PACKED = Chunk("small packed", (1000, 1500), 2, packs=True)
KEYED_PACKED = Chunk("keyed packed", (1000, 1500), 2, secret=SECRET, packs=True)


def sound_files() -> dict[str, bytes]:
    reserved = bytearray(SMALL.file())
    reserved[232:512] = noise("reserved", 280)
    return {
        "ok": SEVERAL.file(),
        "ok-first-block": WINDOW.file(),
        "ok-no-padding": Chunk("exact", (4096,), 2).file(),
        "ok-key-of-12-bytes": replace(SMALL, key=KEY[:12]).file(),
        "ok-key-of-128-bytes": replace(SMALL, key=noise("key", 128)).file(),
        "ok-reserved-not-zero": sealed(reserved[:PAGE]) + bytes(reserved[PAGE:]),
        "ok-padding-damaged": flipped(SMALL.file(), 8191),
        "keyed": KEYED.file(),
        "packed": PACKED.file(),
        "keyed-packed": KEYED_PACKED.file(),
    }


def resealed(data: bytes) -> bytes:
    """The file as somebody without the key makes its checksum right."""
    return sealed(data[:PAGE]) + data[PAGE:]


def forged_files() -> dict[str, tuple[bytes, str]]:
    """Each made of KEYED's file by somebody who has not the key, and how it must read."""
    good = KEYED.file()
    return {
        "keyed-payload-flipped": (flipped(good, PAGE + 5), "CORRUPT"),
        "keyed-pieces-swapped": (
            good[:PAGE] + good[2 * PAGE :] + good[PAGE : 2 * PAGE],
            "CORRUPT",
        ),
        # By one who has the key: all 16 bytes of a tag count.
        "keyed-end-of-tag-flipped": (
            sealed(tagged(flipped(good, 527)[:PAGE], SECRET)) + good[PAGE:],
            "CORRUPT",
        ),
        "keyed-piece-tag-flipped": (resealed(flipped(good, 512)), "FOREIGN"),
        "keyed-header-tag-flipped": (resealed(flipped(good, 264)), "FOREIGN"),
        "keyed-salt-flipped": (resealed(flipped(good, 232)), "FOREIGN"),
        "keyed-reserved-flipped": (resealed(flipped(good, 300)), "FOREIGN"),
        "keyed-by-another": (replace(KEYED, secret=noise("other", 32)).file(), "FOREIGN"),
        "keyed-unknown-scheme": (KEYED.file(authentication=2), "FOREIGN"),
        "keyed-checksums-as-tags": (replace(KEYED, secret=b"").file(authentication=1), "FOREIGN"),
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Each a damaged SMALL one, and how it must read."""
    good = SMALL.file()
    corrupt = {
        "empty": b"",
        "header-truncated": good[:1000],
        "payload-missing": good[:PAGE],
        "payload-truncated": good[:-1],
        "one-page-too-long": good + bytes(PAGE),
        "header-zeroed": bytes(PAGE) + good[PAGE:],
        "magic-flipped": flipped(good, 0),
        "first-block-flipped": flipped(good, 48),
        "key-flipped": flipped(good, 104),
        "reserved-flipped": flipped(good, 400),
        "unused-checksum-flipped": flipped(good, 4095),
        "payload-flipped": flipped(good, PAGE + 1399),
        "header-bytes-wrong": SMALL.file(header_bytes=8192),
        "piece-count-wrong": SMALL.file(piece_count=2),
        "piece-bytes-zero": SMALL.file(piece_bytes=0),
        "piece-bytes-odd": SMALL.file(piece_bytes=5000),
        "payload-bytes-wrong": SMALL.file(payload_bytes=1401),
        "block-count-zero": SMALL.file(block_count=0, payload_bytes=0, piece_count=0),
        "first-block-overflows": SMALL.file(first_block=2**32 - 1),
    }
    foreign = {
        "version-2": SMALL.file(version=2),
        # Judged before the sizes, whose meaning only that version knows.
        "version-2-other-sizes": SMALL.file(version=2, piece_count=9, payload_bytes=5),
    }
    # Packed by somebody who miscounts the escapes of the first group.
    malformed = flipped(SMALL_PACKED.pieces[0], 256 + 4, 0)
    corrupt["packed-malformed"] = with_piece(SMALL_PACKED, 0, malformed)
    return {name: (data, "CORRUPT") for name, data in corrupt.items()} | {
        name: (data, "FOREIGN") for name, data in foreign.items()
    }


def with_piece(chunk: Chunk, index: int, piece: bytes) -> bytes:
    """The file with another piece of the same length, and its right checksum."""
    data = chunk.file()
    begin = PAGE + sum(len(each) + -len(each) % PAGE for each in chunk.pieces[:index])
    code = 512 + 8 * index
    page = data[:code] + crc64(piece).to_bytes(8, "little") + data[code + 8 : PAGE]
    return sealed(page) + data[PAGE:begin] + piece + data[begin + len(piece) :]


def of(chunk: Chunk, file: str, first: int, count: int, **more: Any) -> Wish:
    name = f"{file}: blocks {first} to {first + count - 1}"
    payload = chunk.wanted(first, count)
    return Wish(name, file, chunk.pages, first, count, "OK", payload, key=chunk.key, **more)


def lacks(wish: Wish, first: int, count: int) -> Wish:
    name = f"{wish.file}: blocks {first} to {first + count - 1}, which it lacks"
    return replace(
        wish, name=name, first_block=first, block_count=count, status="NOT_FOUND", payload=b""
    )


def wishes() -> list[Wish]:
    whole = of(SEVERAL, "ok", 0, 5)
    wrong = replace(whole, payload=b"")

    def foreign(what: str, **changes: Any) -> Wish:
        return replace(wrong, name=f"ok: other {what}", status="FOREIGN", **changes)

    keyed = of(KEYED, "keyed", 0, 3, secret=SECRET)
    window = of(WINDOW, "ok-first-block", 3, 2)
    small = of(SMALL, "", 0, 2)
    all_packed = of(PACKED, "packed", 0, 5)
    two_pieces = "several-second-piece-flipped"
    return [
        whole,
        *(of(SEVERAL, "ok", first, count) for first, count in ((0, 1), (1, 1), (2, 2), (4, 1))),
        *(lacks(whole, first, count) for first, count in ((5, 1), (4, 2), (2**31 - 1, 1))),
        window,
        of(WINDOW, "ok-first-block", 4, 1),
        *(lacks(window, first, count) for first, count in ((0, 1), (2, 2), (2, 3), (5, 1))),
        of(Chunk("exact", (4096,), 2), "ok-no-padding", 0, 2),
        of(replace(SMALL, key=KEY[:12]), "ok-key-of-12-bytes", 0, 2),
        of(replace(SMALL, key=noise("key", 128)), "ok-key-of-128-bytes", 0, 2),
        of(SMALL, "ok-reserved-not-zero", 0, 2),
        of(SMALL, "ok-padding-damaged", 0, 2),
        foreign("namespace", namespace=noise("another", 32)),
        foreign("key", key=KEY[:-1] + b"\2"),
        foreign("key, a prefix", key=KEY[:-1]),
        foreign("key, longer by a zero", key=KEY + b"\0"),
        foreign("rank", rank=3),
        foreign("page sizes, same sum", pages=(1500, 1000)),
        foreign("page sizes, one layer", pages=(2500,)),
        foreign("block size", pages=(1000, 1501)),
        # The second piece is damaged: only what needs no byte of it can be had.
        of(SEVERAL, two_pieces, 0, 1),
        of(SEVERAL, two_pieces, 4, 1),
        *(
            replace(of(SEVERAL, two_pieces, first, count), status="CORRUPT", payload=b"")
            for first, count in ((0, 2), (1, 1), (2, 1), (3, 1), (0, 5))
        ),
        keyed,
        *(of(KEYED, "keyed", first, count, secret=SECRET) for first, count in ((0, 1), (2, 1))),
        lacks(keyed, 3, 1),
        replace(keyed, name="keyed: without key", secret=b"", status="FOREIGN", payload=b""),
        replace(keyed, name="keyed: other key", secret=KEY, status="FOREIGN", payload=b""),
        replace(wrong, name="ok: with a key", secret=SECRET, status="FOREIGN"),
        # The first piece is damaged, the last is not.
        of(KEYED, "keyed-payload-flipped", 2, 1, secret=SECRET),
        *(
            replace(keyed, name=name, file=name, status=status, payload=b"")
            for name, (_, status) in forged_files().items()
        ),
        all_packed,
        *(of(PACKED, "packed", first, count) for first, count in ((1, 1), (2, 2), (4, 1))),
        lacks(all_packed, 4, 2),
        of(KEYED_PACKED, "keyed-packed", 0, 2, secret=SECRET),
        replace(small, name="absent", file="absent", status="NOT_FOUND", payload=b""),
        *(
            replace(
                small,
                name=name,
                file=name,
                status=status,
                payload=b"",
                pages=PACKED.pages if name.startswith("packed") else SMALL.pages,
            )
            for name, (_, status) in bad_files().items()
        ),
    ]


def files() -> dict[str, bytes]:
    damaged = flipped(SEVERAL.file(), 2 * PAGE + 100)
    bad = {name: data for name, (data, _) in (bad_files() | forged_files()).items()}
    return sound_files() | {"several-second-piece-flipped": damaged} | bad


def as_json(wish: Wish) -> dict[str, Any]:
    return {
        "name": wish.name,
        "file": f"{wish.file}.chunk",
        "namespace": wish.namespace.hex(),
        "key": wish.key.hex(),
        "rank": wish.rank,
        "auth_key": wish.secret.hex(),
        "page_bytes": list(wish.pages),
        "geometry": f"{geometry(wish.pages):016x}",
        "block_bytes": sum(wish.pages),
        "first_block": wish.first_block,
        "block_count": wish.block_count,
        "status": wish.status,
        "payload_sha256": hashlib.sha256(wish.payload).hexdigest() if wish.payload else None,
    }


def as_row(wish: Wish) -> str:
    case = as_json(wish)
    pages = ",".join(str(size) for size in wish.pages)
    names = ("name", "file", "namespace", "key", "rank", "geometry")
    blocks = (wish.first_block, wish.block_count, wish.status, f"{crc64(wish.payload):016x}")
    secret = case["auth_key"] or "-"
    return "\t".join(
        str(value) for value in (*(case[name] for name in names), pages, *blocks, secret)
    )


def write(folder: Path) -> None:
    for name, data in files().items():
        (folder / f"{name}.chunk").write_bytes(data)
    cases = wishes()
    text = ",\n".join(json.dumps(as_json(case)) for case in cases)
    (folder / "vectors.json").write_text(f"[\n{text}\n]\n")
    (folder / "vectors.tsv").write_text("".join(as_row(case) + "\n" for case in cases))


if __name__ == "__main__":
    write(Path(__file__).parent)
