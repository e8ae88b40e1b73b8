"""Totals and percentiles from a sample of folders. Pure functions.

The folders of a rank are named by the first digits of hashes, so each holds a chunk with the same
chance, and any of them is as good a sample as any other (Cochran, Sampling Techniques, chapter 2:
simple random sampling without replacement).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# Of the normal distribution; below so many folders or chunks a spread says little, see ``total``.
_STANDARD_ERRORS = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_LEAST = 30
# Buckets of ages: eight to a doubling, so that a percentile is right to a tenth.
_BUCKETS_PER_DOUBLING = 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """A total: within ``value`` +- ``error`` with 95% confidence; exact if ``error`` is 0."""

    value: float
    error: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        """Of independent samples."""
        return Estimate(self.value + other.value, math.hypot(self.error, other.error))

    def to_json(self) -> dict[str, float]:
        return {"value": round(self.value), "error": round(self.error)}


def total(counts: Sequence[float], folders: int, unit: float = 1.0) -> Estimate:
    """The sum over all folders.

    Args:
        counts: of the folders that were looked into.
        folders: how many there are.
        unit: of one chunk: 1 of a number of files, their mean size of a number of bytes.
    """
    seen = len(counts)
    if seen >= folders:
        return Estimate(sum(counts))
    if seen == 0:
        return Estimate(0.0, math.inf)
    mean = sum(counts) / seen
    variance = statistics.variance(counts) if seen > 1 else 0.0
    if seen < _LEAST or sum(counts) < _LEAST * unit:
        # So few may look alike by chance. Chunks that fall into folders as hashes do spread as
        # Poisson's distribution; one more than was seen, in case that none was.
        variance = max(variance, (mean + unit / seen) * unit)
    error = folders * math.sqrt(variance / seen * (1 - seen / folders))
    return Estimate(folders * mean, _STANDARD_ERRORS * error)


def age_bucket(seconds: float) -> int:
    """The bucket of an age; times to come count as now."""
    return int(_BUCKETS_PER_DOUBLING * math.log2(max(seconds, 1.0)))


def age_of(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return float(2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING)) if bucket else 0.0


def percentiles(
    samples: Iterable[tuple[Mapping[int, int], float]], wanted: Sequence[float]
) -> list[float | None]:
    """Ages below which each share of the files is, in seconds; None if there are no files.

    Args:
        samples: files by age bucket, and how many files each stands for.
        wanted: shares from 0 to 1.
    """
    weights: Counter[int] = Counter()
    for buckets, weight in samples:
        for bucket, count in buckets.items():
            weights[bucket] += count * weight  # type: ignore[assignment]
    everything = sum(weights.values())
    found: list[float | None] = []
    for share in wanted:
        below, result = 0.0, None
        for bucket in sorted(weights):
            below += weights[bucket]
            result = age_of(bucket)
            if below >= share * everything:
                break
        found.append(result)
    return found
