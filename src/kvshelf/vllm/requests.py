"""Which requests kvshelf leaves alone: those whose KV is no function of what vLLM hashes.

A key stands for everything that vLLM puts into a block's hash. A request whose KV depends on
anything else would store bytes under a key that another request asks for. Such a request looks
nothing up and stores nothing; vLLM computes it, and a counter says how many there are and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvshelf.vllm.bounded import drop_oldest

# vLLM offers the last chunks of a request after the request has ended: one or two steps later on
# the direct path, later from the host memory of a tier. Its id is kept until then.
ENDED_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Hashing:
    """What vLLM's block hashes cover in this engine, as far as requests differ in it."""


def reason_to_leave_alone(hashing: Hashing, request: Any) -> str | None:
    """Why this request's KV is no function of its block hashes; None if it is one.

    The reason is a label of ``kvshelf:requests_left_alone``.
    """
    del hashing, request
    return None


class LeftAlone:
    """Ids of the requests that are left alone, until vLLM asks no more about them."""

    def __init__(self) -> None:
        self._alive: set[str] = set()
        self._ended: dict[str, None] = {}

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._alive or req_id in self._ended

    def add(self, req_id: str) -> bool:
        """True if it is new."""
        is_new = req_id not in self._alive
        self._alive.add(req_id)
        return is_new

    def begins(self, req_id: str) -> None:
        """Forget an earlier request of this id."""
        self._alive.discard(req_id)
        self._ended.pop(req_id, None)

    def ends(self, req_id: str) -> None:
        if req_id in self._alive:
            self._alive.remove(req_id)
            self._ended[req_id] = None
            drop_oldest(self._ended, ENDED_MAX)
