"""What must go now: by the limits, for stores that fail, and by what removal has shown so far."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.demand import REASON as DEMAND
from kvshelf.upkeep.evict.demand import Demand
from kvshelf.upkeep.evict.effect import Effects
from kvshelf.upkeep.evict.limits import Amount, Limits, Need, needs, total
from kvshelf.upkeep.evict.native import Sweep
from kvshelf.upkeep.evict.phase import Phase
from kvshelf.upkeep.evict.watch import RootWatch

Usage = Mapping[str, Amount]


class Wanted:
    """One thread.

    Args:
        settle_seconds: statvfs may show so late what was removed.
        dry_run: nothing goes; what would have gone is not wanted again.
    """

    def __init__(
        self, watch: RootWatch, sweep: Sweep, *, settle_seconds: float, dry_run: bool
    ) -> None:
        self._watch = watch
        self._sweep = sweep
        self._dry_run = dry_run
        self._effects = Effects(settle_seconds)
        self._demand = Demand()
        self._chunks = Amount()  # removed in all
        self._dry: dict[str | None, Amount] = {}  # what went in a dry run, by namespace

    @property
    def requests(self) -> int:
        """Requests for room that were heard."""
        return self._demand.requests

    def asked(self, usage: Usage) -> None:
        """Stores fail for lack of room."""
        self._demand.asked(time.monotonic(), total(usage))

    def needs(
        self, limits: Limits, usage: Usage, phase: Phase, stuck: Container[str | None] = ()
    ) -> list[Need]:
        """What must go, by what is known now.

        Args:
            stuck: namespaces, and None for the shelf, of which nothing can go now.
        """
        volume, held = self._volume(phase), self._effects.held()
        wanted = needs(limits, volume, usage, phase.is_evicting, stuck=stuck, held=held)
        asked = self._demand.need()
        # A limit that is exceeded says itself how much may go: the floor holds.
        if asked is not None and None not in stuck and not wanted:
            wanted = [asked]
        if not self._dry_run:
            return wanted
        gone = self._dry
        wanted = [replace(n, amount=n.amount - gone.get(n.folder, Amount())) for n in wanted]
        return [need for need in wanted if need.amount]

    def _volume(self, phase: Phase) -> Volume:
        """The file system, less what is gone from the shelf and statvfs does not yet tell."""
        now = time.monotonic()
        volume = self._watch.volume()
        self._effects.saw(now, volume)
        shelf = self._sweep.total() if phase.is_known else None
        return self._effects.less_unshown(now, volume, shelf, self._chunks)

    def allowed(self, need: Need, usage: Usage) -> Need:
        """The same, but for no more than may go now; nothing: wait until the volume shows it."""
        if self._dry_run:
            return need
        now = time.monotonic()
        amount = self._effects.limited(need.reason, need.amount, now, total(usage))
        return replace(need, amount=amount)

    def removed(self, removed: Amount, before: Volume) -> None:
        """Files were removed: the volume must show it.

        Args:
            before: the volume right before.
        """
        if self._dry_run or not removed:
            return
        now = time.monotonic()
        self._effects.removed(now, removed, before, self._watch.volume())
        self._demand.removed(now, removed)

    def removed_chunks(self, need: Need, removed: Amount, before: Volume) -> None:
        """The same of chunks, which went for a need."""
        self.removed(removed, before)
        self._chunks += removed
        if self._dry_run:
            self._dry[need.folder] = self._dry.get(need.folder, Amount()) + removed

    def is_settled(self, limits: Limits, usage: Usage) -> bool:
        """Whether the volume itself shows that no limit is exceeded; then nothing is waited for."""
        if self._dry_run:
            return True
        if needs(limits, self._watch.volume(), usage):
            return False
        self._effects.forget()
        return True

    def unfreed(self, wanted: Sequence[Need]) -> dict[str, int]:
        """``Report.unfreed`` of what is wanted."""
        held = self._effects.held() if wanted else {}
        found = {need.reason: held[need.reason] for need in wanted if need.reason in held}
        if self._demand.is_vain(time.monotonic()):
            found[DEMAND] = 0
        return found

    def give_up(self) -> None:
        """Nothing more can go for stores that fail."""
        self._demand.forget()

    def forget(self) -> None:
        """Another evicts from now on."""
        self._effects.forget()
        self._demand.forget()
