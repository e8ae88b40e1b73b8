"""KV events: what was stored and what is gone, in the order in which it became known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from kvshelf.vllm import compat
from kvshelf.vllm.bounded import drop_oldest

# Keys that were said to be gone, so that none is said twice; some 100 bytes each.
_GONE_KEYS_MAX = 32_768
# Keys of requests with adapters; some 200 bytes each. An event for an older one names no chunk.
_ALIASES_MAX = 65_536


class Events:
    """Collects until vLLM takes them, once a step. Scheduler's thread only.

    A chunk is said to be stored when every rank has published it, and to be gone once: when its
    eviction is reported, a lookup of what was known does not find it, or a load of it fails.
    """

    def __init__(self, *, are_wanted: bool) -> None:
        self._are_wanted = are_wanted
        self._runs: list[tuple[bool, list[bytes]]] = []  # (whether gone, keys)
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._aliases: OrderedDict[bytes, bytes] = OrderedDict()  # ours -> vLLM's, if another

    def alias(self, keys: Sequence[bytes], named: Sequence[bytes]) -> None:
        """vLLM has other names for these keys: their requests have an adapter."""
        if not self._are_wanted or keys == named:
            return
        self._aliases.update(zip(keys, named, strict=True))
        drop_oldest(self._aliases, _ALIASES_MAX)

    def stored(self, key: bytes) -> None:
        if self._are_wanted:
            self._gone.pop(key, None)
            self._add(key, is_gone=False)

    def gone(self, key: bytes) -> None:
        if not self._are_wanted or key in self._gone:
            return
        self._gone[key] = None
        if len(self._gone) > _GONE_KEYS_MAX:
            self._gone.popitem(last=False)
        self._add(key, is_gone=True)

    def take(self) -> Iterator[Any]:
        """vLLM's events since the last call."""
        runs, self._runs = self._runs, []
        for is_gone, keys in runs:
            yield compat.removed_event(keys) if is_gone else compat.stored_event(keys)

    def forget(self) -> None:
        self._runs.clear()
        self._gone.clear()

    def _add(self, key: bytes, *, is_gone: bool) -> None:
        if not self._runs or self._runs[-1][0] != is_gone:
            self._runs.append((is_gone, []))
        self._runs[-1][1].append(self._aliases.get(key, key))
