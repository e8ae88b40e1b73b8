"""The shelf as the scheduler's side sees it: keys as vLLM knows them, chunks of this epoch.

    key of vLLM -> (mask of the request's adapter) -> key of ours -> mask of the epoch -> chunk file

Scheduler's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvshelf.disk.clock import Reading
from kvshelf.disk.keys import masked, masked_all
from kvshelf.disk.rendezvous import Share
from kvshelf.engine import JobId
from kvshelf.shelf import Shelf
from kvshelf.vllm.adapters import Adapter
from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.specs import ChunkKeysSpec

# More than an engine has at once. Ended ones stay for a while: vLLM stores their last chunks later.
REQUESTS_MAX = 16_384


class MaskedShelf:
    """
    Attributes:
        inner: the shelf itself, without block memory, for what needs no keys.
        mask: of the epoch; see ``kvshelf.disk.keys.masked``.
        step_ns: in which the roots' file systems keep times, as far as is known: the largest.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.inner = shelf
        self.mask = b""
        self.step_ns = 1
        self.roots, self.folder = shelf.roots, shelf.folder

    def names(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """The keys of the chunk files of ours, and ours of those of chunk files."""
        return masked_all(keys, self.mask)

    def root_of(self, key: bytes) -> int:
        """See ``Shelf.root_of``."""
        return self.inner.root_of(masked(key, self.mask) if self.mask else key)

    def shares(self, keys: Sequence[bytes], runs: Sequence[int] = ()) -> list[Share]:
        """See ``Shelf.shares``."""
        if not self.mask or len(self.roots) == 1:
            return self.inner.shares(keys, runs)
        shares = self.inner.shares(self.names(keys), runs)
        return [
            Share(each.root, each.rows, [keys[row] for row in each.rows.tolist()], each.runs)
            for each in shares
        ]

    def submit_lookup(
        self,
        job_id: JobId,
        keys: Sequence[bytes],
        runs: Sequence[int] = (),
        root: int | None = None,
    ) -> None:
        """See ``Shelf.submit_lookup``."""
        self.inner.submit_lookup(job_id, keys, runs, self.mask, root)

    def submit_probe(self, job_id: JobId, keys: Sequence[bytes], bytes_max: int) -> None:
        """See ``Shelf.submit_probe``."""
        self.inner.submit_probe(job_id, self.names(keys), bytes_max)

    def touch_at(
        self, keys: Sequence[bytes], times_ns: Sequence[int], *, always: bool = False
    ) -> None:
        """See ``Shelf.touch_at``."""
        self.inner.touch_at(keys, times_ns, always=always, mask=self.mask)

    def set_clock(self, root: int, reading: Reading) -> None:
        """The clock of a root's file system was measured."""
        self.step_ns = max(self.step_ns, reading.step_ns)
        self.inner.set_clock(root, reading.ahead_ns)


class MaskedContext:
    """vLLM's context of a request with an adapter, asked with keys of ours."""

    def __init__(self, context: Any, mask: bytes) -> None:
        self._context = context
        self._mask = mask
        self.req_id: str = context.req_id

    def get_offload_key_position(self, key: bytes) -> int | None:
        """Tokens of the request that end with the chunk; 0.26 does not say."""
        position = getattr(self._context, "get_offload_key_position", None)
        return None if position is None else position(masked(key, self._mask))


class RequestKeys:
    """Of each request: keys of ours for vLLM's. They differ where it has an adapter."""

    def __init__(self, shelf: MaskedShelf) -> None:
        self._shelf = shelf
        self._adapters: dict[str, Adapter] = {}  # of requests that have one

    def begins(self, req_id: str) -> None:
        """Forget an earlier request of this id."""
        self._adapters.pop(req_id, None)

    def use_adapter(self, req_id: str, adapter: Adapter) -> None:
        self._adapters[req_id] = adapter
        drop_oldest(self._adapters, REQUESTS_MAX)

    def mask_of(self, req_id: str) -> bytes:
        """From vLLM's keys to ours, and back."""
        adapter = self._adapters.get(req_id) if self._adapters else None
        return b"" if adapter is None else adapter.mask

    def ours(self, keys: Sequence[bytes], req_id: str) -> Sequence[bytes]:
        return masked_all(keys, self.mask_of(req_id))

    def context_of(self, context: Any) -> Any:
        """vLLM's context, to be asked with keys of ours."""
        mask = self.mask_of(context.req_id)
        return MaskedContext(context, mask) if mask else context

    def spec(
        self, ours: Sequence[bytes], req_id: str, audited: Sequence[int] = ()
    ) -> ChunkKeysSpec:
        """What a job of the workers is told."""
        return ChunkKeysSpec(self._shelf.names(ours), self._adapters.get(req_id), audited)
