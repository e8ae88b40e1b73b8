"""Whether removing chunks makes room: compares what was removed with what statvfs shows since.

A snapshot, a hard-linked backup, a trash folder or an open descriptor keeps the blocks of removed
files. Then more removal loses the cache and frees nothing. Arithmetic; no I/O.

How late statvfs shows a removal: ext4 and xfs at once, CephFS after up to 3 s, MooseFS 15 s and
more, btrfs with its transaction (the mount option "commit", 30 s). Files that others write
meanwhile hide it, but little of it where statvfs shows a removal at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.limits import Amount, Limits

# statvfs may show a removal so late.
SETTLE_SECONDS_MAX = 40.0
# CephFS; what is known to be gone is subtracted for so long at least.
SETTLE_SECONDS = 5.0
# A removal shows if statvfs falls by this share of it: volumes compress and deduplicate.
_SHOWN_SHARE = 0.1
# Shares of the shelf that may be removed before a removal shows: of a volume of which nothing is
# known, of one where the last removal did not show, and of one where one did a while ago.
_TRIAL_SHARE, _RETRY_SHARE, _TRUSTED_SHARE = 0.02, 0.002, 0.1
_TRUSTED_SECONDS = 600.0
# Growth may hide the effect so many times in a row before it counts as none.
_HIDDEN_MAX = 3
_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 60.0, 4 * 3600.0


class Effect:
    """Of removals on one resource of a volume: bytes or inodes. One thread.

    Args:
        settle_seconds: statvfs may show a removal so late.

    Attributes:
        unshown: removed, and not seen in statvfs.
        lag_seconds: how late the last removal was seen.
    """

    def __init__(self, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self.unshown = 0
        self.lag_seconds = 0.0
        self._base = 0  # used, when the first of them began
        self._first_at = self._last_at = 0.0
        self._shown_at = float("-inf")
        self._hidden = 0
        self._held_until = float("-inf")
        self._held_used: int | None = None
        self._pause_seconds = _PAUSE_SECONDS_MIN
        self._failed = False  # the last trial

    def removed(self, now: float, amount: int, before: int, after: int) -> None:
        """So much was removed; the use of the volume right before and after."""
        if amount <= 0:
            return
        if self.is_held:  # something else wants removals: they may show that it helps again
            if before - after >= _SHOWN_SHARE * amount:
                self._held_used, self.unshown = None, 0
            return
        if not self.unshown:
            self._first_at, self._base = now, before
        self.unshown += amount
        self._last_at = now
        self.saw(now, after)

    def saw(self, now: float, used: int) -> None:
        if self._held_used is not None:
            fell = self._held_used - used
            if fell >= _SHOWN_SHARE * self.unshown or now >= self._held_until:
                self._held_used, self.unshown = None, 0
            return
        if not self.unshown:
            return
        if self._base - used >= _SHOWN_SHARE * self.unshown:
            self.lag_seconds = now - self._first_at
            self._shown_at, self._failed, self.unshown = now, False, 0
            self._hidden, self._pause_seconds = 0, _PAUSE_SECONDS_MIN
        elif now >= self._last_at + self._settle_seconds:
            self._hidden += 1
            if used - self._base >= self.unshown and self._hidden < _HIDDEN_MAX:
                self.unshown = 0  # others wrote more than that: nobody can say
                return
            self._hold(now, used)

    def _hold(self, now: float, used: int) -> None:
        self._failed, self._hidden = True, 0
        self._shown_at = float("-inf")
        self._held_until, self._held_used = now + self._pause_seconds, used
        self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)

    @property
    def is_held(self) -> bool:
        """Whether removal does not help, and is left alone for a while."""
        return self._held_used is not None

    @property
    def is_pending(self) -> bool:
        """Whether something was removed of which nobody knows yet whether it helps."""
        return self.unshown > 0 and not self.is_held

    def allowance(self, now: float, shelf: int) -> int:
        """How much more may be removed before the effect shows; of a small shelf one file."""
        share = _RETRY_SHARE if self._failed else _TRIAL_SHARE
        if now < self._shown_at + _TRUSTED_SECONDS:
            share = _TRUSTED_SHARE
        return max(1, int(share * shelf)) - self.unshown

    def waits_since(self, now: float) -> float:
        """When the first removal was made whose effect is waited for."""
        return self._first_at if self.is_pending else now

    def forget(self) -> None:
        """Nothing is waited for any more."""
        if self.is_pending:
            self.unshown = 0


class Effects:
    """Of both resources, by the limits that they serve. One thread."""

    def __init__(self, settle_seconds: float = SETTLE_SECONDS_MAX) -> None:
        self._of = {name: Effect(settle_seconds) for name in ("volume_percent", "inode_percent")}
        self._volumes: deque[tuple[float, Volume, Amount, Amount]] = deque()

    def removed(self, now: float, amount: Amount, before: Volume, after: Volume) -> None:
        """Chunks were removed; the volume right before and after."""
        for name, effect in self._of.items():
            if _counts(name, after):
                args = (_pick(name, amount), _used(name, before), _used(name, after))
                effect.removed(now, *args)

    def saw(self, now: float, volume: Volume) -> None:
        for name, effect in self._of.items():
            was_held = effect.is_held
            effect.saw(now, _used(name, volume))
            if effect.is_held and not was_held:
                self._volumes.clear()  # what was removed did not make the volume emptier

    def held(self) -> dict[str, int]:
        """Limits that removal does not help to keep, and the bytes or inodes that did not show."""
        return {name: effect.unshown for name, effect in self._of.items() if effect.is_held}

    def limited(self, reason: str, amount: Amount, now: float, shelf: Amount) -> Amount:
        """What of an amount may be removed now; nothing: wait."""
        effect = self._of.get(reason)
        if effect is None:
            return amount
        most = max(0, effect.allowance(now, _pick(reason, shelf)))
        if reason == "volume_percent":
            files = amount.files if most else 0
            return Amount(files, min(amount.bytes, most))
        return Amount(min(amount.files, most), amount.bytes if most else 0)

    def forget(self) -> None:
        """Nothing is waited for: no limit is exceeded, or another evicts."""
        for effect in self._of.values():
            effect.forget()

    def less_unshown(
        self, now: float, volume: Volume, shelf: Amount | None, removed: Amount
    ) -> Volume:
        """The volume, less what is gone from the shelf and statvfs does not yet tell.

        Args:
            shelf: all of it; None while it is not known: then ``removed`` counts.
            removed: by us, in all.
        """
        since = min(effect.waits_since(now) for effect in self._of.values())
        lag = min(2 * max(e.lag_seconds for e in self._of.values()), SETTLE_SECONDS_MAX)
        oldest = min(since, now - max(SETTLE_SECONDS, lag))
        while self._volumes and self._volumes[0][0] < oldest:
            self._volumes.popleft()
        used, inodes = volume.used_bytes, volume.used_inodes
        for _, before, shelf_before, removed_before in self._volumes:
            # In a first scan what is known of the shelf grows: then what we have removed counts.
            gone = removed - removed_before if shelf is None else shelf_before - shelf
            if gone.files > 0:
                used = min(used, before.used_bytes - gone.bytes)
                inodes = min(inodes, before.used_inodes - gone.files)
        self._volumes.append((now, volume, shelf or Amount(), removed))
        return replace(volume, used_bytes=max(0, used), used_inodes=max(0, inodes))


def unkept(limits: Limits, volume: Volume) -> dict[str, str]:
    """Limits that nobody can keep on this volume, by their names in ``Limits``, and why."""
    found = {}
    if limits.volume_percent is not None and not volume.counts_bytes:
        found["volume_percent"] = volume.bytes_unknown
    if limits.inode_percent is not None and not volume.counts_inodes:
        found["inode_percent"] = volume.inodes_unknown
    return found


def _counts(name: str, volume: Volume) -> bool:
    return volume.counts_bytes if name == "volume_percent" else volume.counts_inodes


def _used(name: str, volume: Volume) -> int:
    return volume.used_bytes if name == "volume_percent" else volume.used_inodes


def _pick(name: str, amount: Amount) -> int:
    return amount.bytes if name == "volume_percent" else amount.files
