"""What is stored and evicted, from the same folders looked into again and again. One thread."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.disk.clock import FileClock
from kvshelf.upkeep.census.census import SHARES, Summary
from kvshelf.upkeep.census.estimate import Estimate, percentiles, total
from kvshelf.upkeep.census.folders import Chunk, Unread, age_buckets, chunks_in, rank_folders

# 16 to the power of layout.FOLDER_DIGITS.
DIGITS = [f"{number:03x}" for number in range(4096)]
# Of a poll: what looking may take of a core at one poll in two seconds is 5%.
LOOK_SECONDS = 0.1

_Seen = dict[tuple[str, int, str], dict[str, Chunk]]


@dataclass(frozen=True, slots=True)
class View(Summary):
    """A shelf at one moment.

    Attributes:
        stored_per_second, evicted_per_second: chunk files since the view before; None in the first.
        share: of the folders that are looked into; 1 if the numbers are exact, unless some of it
            is ``unread``.
    """

    stored_per_second: Estimate | None
    evicted_per_second: Estimate | None
    share: float
    unread: Unread = field(default_factory=Unread)


class Watch:
    """Looks into as many folders of a shelf as can be done quickly, at each ``look``.

    All ranks' folders of the same digits are one sample: each digit has the same chance to be in a
    hash. So chunks that come and go in them tell how many do on the whole shelf.

    Args:
        seed, clock, look_seconds: for tests.
    """

    def __init__(
        self,
        root: Path,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._root, self._clock = root, clock
        order = list(DIGITS)
        random.Random(seed).shuffle(order)  # noqa: S311 - which folders are looked into is no secret
        self._digits, self._look_seconds = order, look_seconds
        self._file_clock = FileClock(root)
        self._seen: _Seen | None = None
        self._at = 0.0
        self._unread = Unread()

    def look(self) -> View:
        """What there is now.

        Raises:
            OSError: the root cannot be listed.
        """
        before, before_at = self._seen, self._at
        self._at = self._clock()
        now, seen = 1e-9 * self._file_clock.now_ns(), self._count(limited=before is None)
        self._seen = seen
        everything = [chunk for chunks in seen.values() for chunk in chunks.values()]
        stored, used = age_buckets(everything, now)
        weight = len(DIGITS) / len(self._digits)
        came, went = (None, None) if before is None else _difference(before, seen)
        seconds = max(self._at - before_at, 1e-9)
        files, sizes = self._by_digits(seen)
        mean = sum(sizes) / max(1, sum(files))
        return View(
            chunks=total(files, len(DIGITS)),
            bytes=total(sizes, len(DIGITS), unit=mean),
            stored_per_second=None if came is None else _rate(came, weight, seconds),
            evicted_per_second=None if went is None else _rate(went, weight, seconds),
            stored=tuple(percentiles([(stored, 1.0)], SHARES)),
            used=tuple(percentiles([(used, 1.0)], SHARES)),
            share=len(self._digits) / len(DIGITS),
            unread=self._unread,
        )

    def _count(self, *, limited: bool) -> _Seen:
        """The first look decides how many folders are looked into from then on."""
        unread = Unread()
        ranks = rank_folders(self._root, unread)
        end = self._clock() + self._look_seconds
        seen: _Seen = {}
        for number, digits in enumerate(self._digits):
            if limited and number and self._clock() >= end:
                self._digits = self._digits[:number]
                break
            for rank in ranks:
                if digits in rank.hash_folders:
                    place = (rank.namespace, rank.rank, digits)
                    seen[place] = chunks_in(rank, digits, unread)
        self._unread = unread
        return seen

    def _by_digits(self, seen: _Seen) -> tuple[list[int], list[int]]:
        files, sizes = dict.fromkeys(self._digits, 0), dict.fromkeys(self._digits, 0)
        for (_, _, digits), chunks in seen.items():
            files[digits] += len(chunks)
            sizes[digits] += sum(chunk.size for chunk in chunks.values())
        return list(files.values()), list(sizes.values())


def _difference(before: _Seen, now: _Seen) -> tuple[int, int]:
    came = went = 0
    for place in before.keys() | now.keys():
        old, new = before.get(place, {}), now.get(place, {})
        came += len(new.keys() - old.keys())
        went += len(old.keys() - new.keys())
    return came, went


def _rate(count: int, weight: float, seconds: float) -> Estimate:
    """Events of a sample in so many seconds, of which each stands for ``weight``."""
    error = 0.0 if weight == 1 else 2 * math.sqrt(count + 1) * weight / seconds
    return Estimate(count * weight / seconds, error)
