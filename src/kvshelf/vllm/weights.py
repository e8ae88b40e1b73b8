"""Tell two sets of weights apart without reading all of them.

The digest covers, for every weights file, its name and size, and bytes from it: of a safetensors
file the header and three windows of every tensor, of any other file evenly spaced windows. Training
or merging changes whole tensors, so two models that differ at all differ in a window for certain in
practice, but not by proof: a hand-made edit of single values can escape. Whoever edits weights in
place that way sets ``identity_salt``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
# 4 KiB: one page of a file system; three a tensor are 10 MB for a model of 800 tensors.
WINDOW_BYTES = 4096
# Windows of a file that is not safetensors.
WINDOWS = 256
# The safetensors specification caps its header at 100 MB.
SAFETENSORS_HEADER_BYTES_MAX = 100_000_000


def weights_digest(model_config: Any, load_config: Any) -> str:
    """A short text that differs wherever the weights may differ.

    A local directory is sampled; a model of a hub is named by the commit of its snapshot if that
    is in the local cache, else by the revision asked for; dummy weights by their seed.
    """
    if str(getattr(load_config, "load_format", "auto")).rsplit(".", 1)[-1].lower() == "dummy":
        return f"dummy:seed={model_config.seed}"
    model = str(model_config.model)
    directory = Path(model)
    if directory.is_dir():
        return f"sampled:{_directory_digest(directory)}"
    if directory.is_file():
        return f"sampled:{_files_digest([directory])}"
    return f"hub:{_hub_commit(model, model_config.revision) or model_config.revision or 'main'}"


def _hub_commit(model: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - vLLM brings it

    path = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(path, str):
        return None
    parts = Path(path).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _directory_digest(directory: Path) -> str:
    return _files_digest(
        sorted(p for p in directory.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.is_file())
    )


def _files_digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            for offset in _windows(file, path.suffix, size):
                file.seek(offset)
                digest.update(file.read(WINDOW_BYTES))
    return digest.hexdigest()[:32]


def _windows(file: BinaryIO, suffix: str, size: int) -> Iterator[int]:
    tensors = _safetensors_ranges(file, size) if suffix == ".safetensors" else None
    if tensors is None:
        step = max(WINDOW_BYTES, size // WINDOWS)
        yield from range(0, size, step)
        return
    for start, end in tensors:
        yield start
        yield max(start, (start + end) // 2)
        yield max(start, end - WINDOW_BYTES)


def _safetensors_ranges(file: BinaryIO, size: int) -> list[tuple[int, int]] | None:
    """Byte ranges of the header and of every tensor, or None if the file is not safetensors."""
    prefix = file.read(8)
    if len(prefix) < 8:
        return None
    (header_bytes,) = struct.unpack("<Q", prefix)
    if not 2 <= header_bytes <= min(size - 8, SAFETENSORS_HEADER_BYTES_MAX):
        return None
    try:
        header = json.loads(file.read(header_bytes))
        base = 8 + header_bytes
        ranges = [
            (base + int(info["data_offsets"][0]), base + int(info["data_offsets"][1]))
            for name, info in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return [(0, base), *sorted(ranges)]
