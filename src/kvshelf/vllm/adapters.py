"""LoRA adapters by content: two adapters of one name and path have other keys if they differ.

vLLM hashes an adapter's name and path into block hashes, not its weights. Here every key of a
request with an adapter is masked with a digest of the adapter that the workers have in memory.

    worker:    an adapter is loaded -> digest_of -> Loaded
    scheduler: Loaded of every rank -> Adapters -> mask of a request; a store names what it expects
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvshelf.disk.keys import make_mask

# Names and paths whose adapters' digests are remembered between two resets of vLLM's prefix cache;
# some 200 bytes each. Requests with further ones are left alone.
NAMES_MAX = 262_144

# What a worker has in memory: adapter id -> digest.
Loaded = dict[int, str]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter of a request, by content.

    Attributes:
        adapter_id: vLLM's ``lora_int_id``.
        digests: one a rank, in order.
        mask: for the request's keys.
    """

    adapter_id: int
    digests: tuple[str, ...]
    mask: bytes


def digest_of(adapter: Any) -> str:
    """A digest of vLLM's LoRAModel in a worker's memory, hexadecimal: every value, and scales."""
    digest = hashlib.sha256()
    for name, layer in sorted(_layers(adapter)):
        digest.update(f"{name}\n".encode())
        for kind in sorted(vars(layer)):
            _add(digest, kind, vars(layer)[kind])
    return digest.hexdigest()


def _layers(adapter: Any) -> Iterable[tuple[str, Any]]:
    yield from ((f"lora {name}", layer) for name, layer in adapter.loras.items())
    saved = getattr(adapter, "modules_to_save", None) or {}
    yield from ((f"saved {name}", layer) for name, layer in saved.items())


def _add(digest: Any, kind: str, value: Any) -> None:
    from kvshelf.vllm.worker.memory_weights import bytes_of  # noqa: PLC0415 - the scheduler needs no torch

    if hasattr(value, "untyped_storage"):
        digest.update(f"{kind} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(bytes_of(value.detach().cpu()))
    elif isinstance(value, list | tuple):
        for each in value:
            _add(digest, kind, each)
    else:
        digest.update(f"{kind} {value!r}\n".encode())


class Adapters:
    """The scheduler's side. One thread: the scheduler's."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, ...]] = {}  # adapter id -> digests, one a rank
        # (name, path), which vLLM hashes -> digests whose KV its own prefix cache may hold.
        self._cached: dict[tuple[str, str], tuple[str, ...]] = {}

    def loaded(self, ranks: Sequence[Mapping[int, str]]) -> None:
        """What every rank has in memory, in order of ranks."""
        common = set.intersection(*(set(rank) for rank in ranks)) if ranks else set[int]()
        self._known = {each: tuple(rank[each] for rank in ranks) for each in common}

    def knows(self, adapter_id: int) -> bool:
        return adapter_id in self._known

    def of_request(self, adapter_id: int, name: str, path: str) -> Adapter | None:
        """The adapter of a new request; None: the request must be left alone, since nobody knows
        the adapter, or vLLM's prefix cache may hold KV of another one of this name and path."""
        digests = self._known.get(adapter_id)
        if digests is None:
            return None
        if (name, path) not in self._cached and len(self._cached) >= NAMES_MAX:
            return None
        if self._cached.setdefault((name, path), digests) != digests:
            return None
        return Adapter(adapter_id, digests, make_mask(f"adapter {' '.join(digests)}"))

    def local_reset(self) -> None:
        """vLLM's own prefix cache is empty."""
        self._cached.clear()
