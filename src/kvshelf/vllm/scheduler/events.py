"""KV events: what was stored and what was evicted, in the order in which it became known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from kvshelf.vllm import compat
from kvshelf.vllm.bounded import drop_oldest

# Keys of requests with adapters; some 200 bytes each. An event for an older one names no chunk.
_ALIASES_MAX = 65_536


class Events:
    """Collects until vLLM takes them, once a step. Scheduler's thread only.

    A chunk is said to be stored when every rank has published it, and to be evicted once: when its
    eviction is reported, a lookup of what was known does not find it, or a load of it fails.
    ``ChunkTable`` knows what was said already.

    Attributes:
        are_wanted: whether vLLM publishes KV events.
    """

    def __init__(self, *, are_wanted: bool) -> None:
        self.are_wanted = are_wanted
        self._runs: list[tuple[bool, list[bytes]]] = []  # (whether evicted, keys)
        self._aliases: OrderedDict[bytes, bytes] = OrderedDict()  # ours -> vLLM's, if another

    def alias(self, keys: Sequence[bytes], named: Sequence[bytes]) -> None:
        """vLLM has other names for these keys: their requests have an adapter."""
        if not self.are_wanted or keys == named:
            return
        self._aliases.update(zip(keys, named, strict=True))
        drop_oldest(self._aliases, _ALIASES_MAX)

    def stored(self, key: bytes) -> None:
        if self.are_wanted:
            self._add(key, is_evicted=False)

    def evicted(self, key: bytes) -> None:
        if self.are_wanted:
            self._add(key, is_evicted=True)

    def take(self) -> Iterator[Any]:
        """vLLM's events since the last call."""
        runs, self._runs = self._runs, []
        for is_evicted, keys in runs:
            yield compat.event(keys, is_evicted=is_evicted)

    def forget(self) -> None:
        self._runs.clear()

    def _add(self, key: bytes, *, is_evicted: bool) -> None:
        if not self._runs or self._runs[-1][0] != is_evicted:
            self._runs.append((is_evicted, []))
        self._runs[-1][1].append(self._aliases.get(key, key))
