"""A census of a shelf: at once from a few folders, better with every further one. One thread."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf.disk.clock import FileClock
from kvshelf.upkeep.census.estimate import Estimate, percentiles, total
from kvshelf.upkeep.census.folders import RankFolder, Unread, age_buckets, chunks_in, rank_folders

# What ages are told of: the youngest tenth, the middle, the oldest tenth.
SHARES = (0.1, 0.5, 0.9)


@dataclass(slots=True)
class RankSample:
    """What was seen of one rank.

    Attributes:
        files, sizes: of each folder that was looked into.
        stored, used: files by age bucket.
    """

    folder: RankFolder
    files: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    stored: Counter[int] = field(default_factory=Counter)
    used: Counter[int] = field(default_factory=Counter)

    def count(self, name: str, now: float, unread: Unread) -> None:
        chunks = chunks_in(self.folder, name, unread).values()
        self.files.append(len(chunks))
        self.sizes.append(sum(chunk.size for chunk in chunks))
        stored, used = age_buckets(chunks, now)
        self.stored += stored
        self.used += used

    @property
    def chunks(self) -> Estimate:
        return total(self.files, len(self.folder.hash_folders))

    @property
    def bytes(self) -> Estimate:
        mean = sum(self.sizes) / max(1, sum(self.files))
        return total(self.sizes, len(self.folder.hash_folders), unit=mean)

    @property
    def weight(self) -> float:
        """How many files one that was seen stands for."""
        return len(self.folder.hash_folders) / max(1, len(self.files))


@dataclass(frozen=True, slots=True)
class Summary:
    """Several ranks together.

    Attributes:
        chunks: chunk files; each rank has its own of a chunk.
        stored, used: ages in seconds at the shares of ``SHARES``, by the file system's clock; None
            if there are no files. ``stored`` of chunks that were not used again.
    """

    chunks: Estimate
    bytes: Estimate
    stored: tuple[float | None, ...]
    used: tuple[float | None, ...]


def summary(samples: Sequence[RankSample]) -> Summary:
    chunks = bytes_ = Estimate(0.0)
    for sample in samples:
        chunks += sample.chunks
        bytes_ += sample.bytes
    stored = percentiles(((each.stored, each.weight) for each in samples), SHARES)
    used = percentiles(((each.used, each.weight) for each in samples), SHARES)
    return Summary(chunks, bytes_, tuple(stored), tuple(used))


class Census:
    """Counts a shelf.

    Args:
        seed: of the order in which folders are looked into; for tests.
        clock: seconds, for ``refine``.

    Attributes:
        ranks: one a rank and namespace, in order.
        unread: what could not be counted.

    Raises:
        OSError: the root cannot be listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._now = clock, 1e-9 * FileClock(root).now_ns()
        self.unread = Unread()
        self.ranks = [RankSample(folder) for folder in rank_folders(root, self.unread)]
        rng = random.Random(seed)  # noqa: S311 - which folders come first is no secret
        orders = [sorted(each.folder.hash_folders) for each in self.ranks]
        for order in orders:
            rng.shuffle(order)
        # The ranks in turn, so that every one is known equally well.
        self._left = [
            (sample, order[turn])
            for turn in range(max(map(len, orders), default=0))
            for sample, order in zip(self.ranks, orders, strict=True)
            if turn < len(order)
        ]
        self._left.reverse()
        self.folders = len(self._left)

    @property
    def seen(self) -> int:
        """Folders that were looked into, of ``folders``."""
        return self.folders - len(self._left)

    @property
    def is_complete(self) -> bool:
        return not self._left

    @property
    def exact(self) -> bool:
        return self.is_complete and not self.unread.count

    def refine(self, seconds: float) -> None:
        """Look into more folders for so long, one of each rank at least."""
        end = self._clock() + seconds
        least = len(self._left) - len(self.ranks)
        while self._left and (len(self._left) > least or self._clock() < end):
            sample, name = self._left.pop()
            sample.count(name, self._now, self.unread)

    def namespaces(self) -> Iterator[tuple[str, list[RankSample]]]:
        """The samples of each namespace that has any rank."""
        names = dict.fromkeys(sample.folder.namespace for sample in self.ranks)
        for name in names:
            yield name, [each for each in self.ranks if each.folder.namespace == name]
