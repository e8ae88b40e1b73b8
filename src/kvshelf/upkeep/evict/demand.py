"""How much goes when stores fail for lack of room though all limits hold: arithmetic, no I/O.

A quota of a user, a project or a directory does not show in statvfs. What the shelf holds when a
store fails is then its limit: the shelf shrinks by ``_STEP_SHARE``, as from a high mark to a low
one, again whenever stores fail, and not faster than ``_MINUTE_SHARE`` a minute.
"""

from __future__ import annotations

from collections import deque

from kvshelf.upkeep.evict.limits import Amount, Need

REASON = "stores_failed"
_STEP_SHARE, _MINUTE_SHARE = 0.05, 0.1
_MINUTE_SECONDS = 60.0
# Without a request for so long, stores succeed again.
_QUIET_SECONDS = 120.0
# When so much of the shelf went and stores fail all the same, it does not help.
_VAIN_SHARE = 0.3
_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 300.0, 4 * 3600.0


class Demand:
    """One thread.

    Attributes:
        requests: that were heard.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._left = Amount()  # to be removed
        self._asked_at = float("-inf")
        self._began_with = Amount()  # the shelf, when stores began to fail
        self._removed = Amount()  # since then
        self._lately: deque[tuple[float, Amount]] = deque()
        self._pause_until = float("-inf")
        self._pause_seconds = _PAUSE_SECONDS_MIN

    def asked(self, now: float, shelf: Amount) -> None:
        """Stores fail for lack of room now, and the shelf holds so much."""
        self.requests += 1
        if now >= self._asked_at + _QUIET_SECONDS:
            self._began_with, self._removed = shelf, Amount()
            self._pause_seconds = _PAUSE_SECONDS_MIN
        self._asked_at = now
        if self._left or now < self._pause_until:
            return
        most = _VAIN_SHARE * self._began_with.bytes
        if self._removed.bytes and self._removed.bytes >= most:
            self._pause_until = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)
            self._began_with, self._removed = shelf, Amount()
            return
        while self._lately and self._lately[0][0] < now - _MINUTE_SECONDS:
            self._lately.popleft()
        gone = sum((amount.bytes for _, amount in self._lately), 0)
        allowed = int(_MINUTE_SHARE * (shelf.bytes + gone)) - gone
        amount = min(int(_STEP_SHARE * shelf.bytes), allowed)
        if amount > 0 and shelf.files:
            self._left = Amount(0, amount)

    def removed(self, now: float, amount: Amount) -> None:
        """So much went, for whatever reason."""
        if not amount or now >= self._asked_at + _QUIET_SECONDS:
            return
        self._lately.append((now, amount))
        self._removed += amount
        self._left = Amount(0, max(0, self._left.bytes - amount.bytes))

    def is_vain(self, now: float) -> bool:
        """Whether removal does not make stores succeed: it is left alone for a while."""
        return now < min(self._pause_until, self._asked_at + _QUIET_SECONDS)

    def need(self) -> Need | None:
        return Need(self._left, REASON) if self._left else None

    def forget(self) -> None:
        """Nothing more can go, or another evicts."""
        self._left = Amount()
