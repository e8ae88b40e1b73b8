"""One round of removal: a need, the cut for it, and the walk over all folders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvshelf.upkeep.evict.limits import Amount, Need
from kvshelf.upkeep.evict.native import Work


@dataclass(slots=True)
class Round:
    """One thread.

    Attributes:
        need: what the cut was chosen for.
        cut_age_seconds: chunks unused for longer go; None if there are none.
        held_before: what the file system had refused to remove when it began.
        removed: by it so far.
        refused: files that the file system did not let go.
    """

    need: Need
    cut_age_seconds: float | None
    held_before: Amount
    removed: Amount = field(default_factory=Amount)
    refused: int = 0

    def add(self, work: Work) -> None:
        self.removed += work.removed
        self.refused += work.refused

    def left(self) -> list[Need]:
        """What is still to go for it."""
        left = replace(self.need, amount=self.need.amount - self.removed)
        return [left] if left.amount else []

    def is_kept(self, held: Amount) -> bool:
        """Whether the histogram kept half of its promise, with what is held now. Otherwise chunks
        were used since it was made, or others have removed them."""
        gone = self.removed.bytes + (held - self.held_before).bytes
        return 2 * gone > self.need.amount.bytes
