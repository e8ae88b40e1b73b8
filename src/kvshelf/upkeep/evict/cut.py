"""From a histogram of last uses to the times before which chunks go. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvshelf.upkeep.evict.limits import Amount
from kvshelf.upkeep.evict.native import AGE_BUCKETS, BUCKET_EDGES_SECONDS, NEVER_NS, Buckets

Floats = NDArray[np.float64]
EffectiveAge = Callable[[Floats, NDArray[np.bool_], Floats], Floats]
"""``policy.effective_age``: which chunks go first."""

# Older than any time that a file can have, in seconds: 285 years.
_OLDEST_SECONDS = 9e9
# Halvings of that until 1 ns.
_HALVINGS = 64
# Of a histogram of a part of the shelf, this much of the need is trusted to be ordered rightly.
_SAMPLE_SHARE = 0.9


def choose_cuts(
    buckets: Buckets,
    need: Amount,
    effective_age: EffectiveAge,
    *,
    now_ns: int,
    folder: str | None = None,
    future_seconds: float = 0.0,
) -> NDArray[np.int64]:
    """Which chunks go: the ones of the largest effective ages, as many as are needed.

    What is surely among them is less than the need or equal to it; together with what maybe is it
    meets the need, if the histogram holds so much.

    Args:
        folder: the only namespace of which chunks go; None for all.
        future_seconds: how far ahead of our clock last uses may be and still be candidates. Those
            since the histogram was made are none otherwise.

    Returns:
        int64[namespaces, 2, 2], as ``Sweep.begin_removal`` takes it.
    """
    cuts = np.full((len(buckets.folders), 2, 2), NEVER_NS, dtype=np.int64)
    rows = np.ones(len(buckets.bucket), dtype=bool)
    if folder is not None:
        rows = buckets.namespace == buckets.folders.index(folder)
    if not rows.any() or not need:
        return cuts
    namespace, reused = buckets.namespace[rows], buckets.reused[rows]
    bucket = buckets.bucket[rows]
    passed = max(0.0, 1e-9 * (now_ns - buckets.time_ns))
    youngest = BUCKET_EDGES_SECONDS[bucket] + passed
    oldest = BUCKET_EDGES_SECONDS[bucket + 1] + passed
    youngest[bucket == 0] -= future_seconds
    oldest[bucket == AGE_BUCKETS - 1] = _OLDEST_SECONDS
    idle = np.maximum(0.0, 1e-9 * (now_ns - buckets.last_use_ns).astype(np.float64))

    def ages(seconds: Floats, use: NDArray[np.bool_], space: NDArray[np.int64]) -> Floats:
        # A policy knows no negative ages: they go on below that of age 0.
        known: Floats = effective_age(np.maximum(seconds, 0.0), use, idle[space]).copy()
        known += np.minimum(seconds, 0.0)
        return known

    share = 1.0 if buckets.coverage >= 1 else buckets.coverage * _SAMPLE_SHARE
    files, bytes_ = buckets.files[rows], buckets.bytes[rows]
    wanted = Amount(int(need.files * share), int(need.bytes * share))
    sure = _sure_age(ages(oldest, reused, namespace), files, bytes_, wanted)
    low = ages(youngest, reused, namespace)
    maybe = sure if share < 1 else min(sure, _maybe_age(low, files, bytes_, wanted))
    # If all goes, then all that the histogram counts.
    sure = max(sure, float(low.min()))
    maybe = max(maybe, float(low.min()))

    spaces, uses = np.divmod(np.unique(2 * namespace + reused), 2)
    for column, limit in ((0, sure), (1, np.nextafter(maybe, -np.inf))):
        seconds = _age_at(limit, lambda s: ages(s, uses != 0, spaces), len(spaces), future_seconds)
        cuts[spaces, uses, column] = now_ns - np.ceil(1e9 * seconds).astype(np.int64)
    cuts[:, :, 1] = np.maximum(cuts[:, :, 0], cuts[:, :, 1])
    return cuts


def _sure_age(
    oldest: Floats, files: NDArray[np.int64], bytes_: NDArray[np.int64], need: Amount
) -> float:
    """The least age so that no more chunks than needed can be older; -inf if all may be."""
    order = np.argsort(-oldest, kind="stable")
    missing = (np.cumsum(bytes_[order]) <= need.bytes) | (np.cumsum(files[order]) <= need.files)
    return -np.inf if missing.all() else float(oldest[order][np.argmin(missing)])


def _maybe_age(
    youngest: Floats, files: NDArray[np.int64], bytes_: NDArray[np.int64], need: Amount
) -> float:
    """The greatest age so that enough chunks are at least as old; -inf if all are too few."""
    order = np.argsort(-youngest, kind="stable")
    met = (np.cumsum(bytes_[order]) >= need.bytes) & (np.cumsum(files[order]) >= need.files)
    return float(youngest[order][np.argmax(met)]) if met.any() else -np.inf


def _age_at(
    limit: float, ages: Callable[[Floats], Floats], classes: int, future_seconds: float
) -> Floats:
    """The greatest age in seconds of each class whose effective age is not above the limit."""
    low = np.full(classes, -future_seconds)
    high = np.full(classes, _OLDEST_SECONDS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = ages(middle) <= limit
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high
