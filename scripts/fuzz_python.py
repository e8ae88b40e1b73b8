"""One fuzz target of the Python readers, under atheris: what a shelf holds may be anything.

    python scripts/fuzz_python.py TARGET [LIBFUZZER OPTION...] CORPUS

Targets: py-header, py-names, py-documents, py-traces. An exception that a reader does not promise,
or a wrong answer, ends it with a status that is not 0, and libFuzzer keeps the input.
`scripts/fuzz.py` runs all of them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the codec is the tests'

from tests.harness import codec

from kvshelf.cli import scrape
from kvshelf.core import native
from kvshelf.disk import layout, namespace
from kvshelf.disk.namespace import Identity
from kvshelf.engine import FileStatus
from kvshelf.errors import ChunkFormatError
from kvshelf.plan import read as plan_read
from kvshelf.plan import trace as plan_trace
from kvshelf.plan.read import FORMATS, read_trace
from kvshelf.plan.trace import TraceError
from kvshelf.upkeep.evict import journal
from kvshelf.upkeep.evict.journal import MAGIC, RemovedReader

MODULES = (codec, layout, namespace, scrape, journal, plan_read, plan_trace)
VECTORS = Path(__file__).resolve().parent.parent / "tests" / "vectors"
SCRATCH = Path(tempfile.mkdtemp(prefix="kvshelf-fuzz-", dir="/dev/shm"))


def header(data: bytes) -> None:
    """Python and C++ judge a header alike; half of the inputs get a right checksum."""
    page = data[1 : 1 + codec.HEADER_BYTES]
    if data[:1] > b"\x7f" and len(page) == codec.HEADER_BYTES:
        page = codec.seal(page)
    try:
        found = codec.decode(page)
    except ChunkFormatError:
        found = None
    if found is None or found.version != codec.VERSION:
        wanted = (bytes(12), bytes(32), 0, 0, 1, 0, 1)
        whole = 1 << 40
    else:
        wanted = (
            found.key,
            found.namespace,
            found.rank,
            found.geometry,
            found.block_bytes,
            found.first_block,
            found.block_count,
        )
        whole = codec.file_bytes(found.payload_bytes)
        if found.authentication == codec.NOT_AUTHENTICATED:
            codec.bad_pieces(found, data[1 + codec.HEADER_BYTES :])
            again = codec.decode(codec.encode(found))
            assert again == found, (found, again)
    status = FileStatus(native.check_header(page, whole, *wanted))
    sound = (
        found is not None
        and found.version == codec.VERSION
        and found.authentication == codec.NOT_AUTHENTICATED  # there is no key here
    )
    assert (status is FileStatus.OK) == sound, (status, found)


def names(data: bytes) -> None:
    """What a name means, it also makes; and no name leads out of the shelf."""
    text = data.decode("utf-8", "surrogateescape")
    chunk = layout.parse_chunk_path(text)
    if chunk is not None:
        assert layout.chunk_path(chunk.folder, chunk.rank, chunk.key) == text
        assert text.isascii() and text.count("/") == 3 and ".." not in text.split("/")
    owner = layout.parse_temp_name(text)
    lease = layout.parse_lease_name(text)
    removed = layout.parse_removed_name(text)
    assert [owner, lease, removed].count(None) >= 2, text
    if removed is not None:
        assert layout.is_namespace_folder(removed.folder)
    if layout.is_doomed_folder(text):
        assert not layout.is_namespace_folder(text)
    if layout.is_namespace_folder(text):
        assert "/" not in text and not text.startswith(".")
        assert len(layout.short_digest(text)) == 6
    layout.parse_rank_folder(text)
    assert layout.parse_chunk_path(f"{layout.safe_host(text)}/r0/x") is None


def documents(data: bytes) -> None:
    """namespace.json, the journal of removed chunks, a server's metrics."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(data)
        if isinstance(value, dict):
            identity = Identity(value)
            assert Identity.from_json(identity.to_json()).digest == identity.digest
        Identity.from_json(value)
    for value in scrape.parse(data.decode("utf-8", "replace")).values():
        assert isinstance(value, float)
    # A journal gives the same keys at once and as it grows.
    journal = MAGIC + data
    whole: dict[bytes, None] = {}
    RemovedReader("/", "x")._parse("x", journal, True, whole)
    grown: dict[bytes, None] = {}
    reader, offset = RemovedReader("/", "x"), 0
    for end in range(0, len(journal) + 1, max(1, len(journal) // 3)):
        if end > offset:
            offset += reader._parse("x", journal[offset:end], offset == 0, grown)
    reader._parse("x", journal[offset:], offset == 0, grown)
    assert list(grown) == list(whole), (grown, whole)


def traces(data: bytes) -> None:
    """Any file is a trace, or a TraceError that names its line."""
    path = SCRATCH / "trace"
    path.write_bytes(data[1:])
    kinds = tuple(FORMATS)
    kind = kinds[(data[0] if data else 0) % len(kinds)]
    try:
        trace = read_trace(path, kind, 16)
    except TraceError as error:
        assert str(path) in str(error)
    else:
        assert len(trace.offsets) == len(trace.seconds) + 1


def seeds(target: str) -> list[bytes]:
    folder = "tiny-0123456789ab"
    owner = "host-01234567-4026531836-12-345"
    if target == "py-header":
        chunks = [path.read_bytes()[:8192] for path in sorted(VECTORS.glob("*.chunk"))]
        return [mode + chunk for chunk in chunks for mode in (b"\0", b"\xff")]
    if target == "py-names":
        texts = [
            folder,
            layout.chunk_path(folder, 3, bytes(36)),
            f"{owner}-7.tmp",
            f"lease-{1:010}-{2:010}-{'0a' * 8}-{owner}",
            f"{folder}-{'0a' * 8}-0.keys",
            layout.doomed_name(folder, "0123abcd"),
        ]
        return [text.encode() for text in texts]
    if target == "py-documents":
        identity = Identity({"model": "tiny", "list": [1, None, {"a": "\ud800"}]})
        record = bytes((36,)) + bytes(36)
        metrics = b'vllm:kv_total{result="hit",model="a"} 3.0\nx 1e3\n'
        return [json.dumps(identity.to_json()).encode(), b'{"model": "m"}', record * 2, metrics]
    request = b'{"timestamp": 0, "input_length": 32, "output_length": 1, "hash_ids": [1, 2]}\n'
    rows = b"timestamp,input_length,hash_ids\n0,32,1 2\n"
    log = (
        b"DEBUG 11-24 15:38:33 [l.py:1] Request ID details: prompt: 'text', prompt_token_ids: "
        b"[1, 2], prompt_embeds shape: None.\n"
    )
    return [bytes((kind,)) + text for kind in range(3) for text in (request, rows, log)]


def instrument(module: ModuleType) -> None:
    """Have atheris see the branches of a module's functions and methods. (Its own way, at import,
    knows nothing of installations in place.)"""
    for owner in (module, *(each for each in vars(module).values() if isinstance(each, type))):
        for each in list(vars(owner).values()):
            function = getattr(each, "__func__", getattr(each, "fget", each))
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                atheris.instrument_func(function)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "py-header": header,
    "py-names": names,
    "py-documents": documents,
    "py-traces": traces,
}


def main() -> None:
    for module in MODULES:
        instrument(module)
    target, corpus = sys.argv[1], Path(sys.argv[-1])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
