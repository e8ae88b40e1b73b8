"""Which chunks go first. Pure; the one place to change the order of eviction.

Least recently used, with two exceptions that the files' own times are enough for. What was tried
on two real traces, an hour of chat and a quarter of an hour of a synthetic mix, and the figures:
``benchmarks/bench_policy.py`` and ``benchmarks/results/policy.json``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A chunk that was used again counts as younger by this factor.
REUSED_FACTOR = 2.0


def effective_age(
    age_seconds: NDArray[np.float64],
    reused: NDArray[np.bool_],
    namespace_idle_seconds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """float64[chunks]: the chunks of the largest values are evicted first.

    Args:
        age_seconds: float64[chunks], since the last use (access time, set by our touches).
        reused: bool[chunks], whether it was touched after it was stored (access time above
            modification time).
        namespace_idle_seconds: float64[chunks], since the last use of any chunk of its namespace.

    It grows with age. Touches make the tail of a prompt older than its head, and whoever touches a
    chunk touches all before it, so no chunk goes before the ones that need it.

    **Used again.** At every age a chunk that was used again is used once more at two to three times
    the rate of one that never was: half the age. Factors of 2 to 4 were best and about equal on the
    first halves of both traces, so the smallest was taken.

    **Idle namespaces.** A model that nobody asks any more is not asked again soon. Its idle time
    counts once more, so that a whole namespace goes before whatever was used after it fell idle.
    The traces have one namespace each: this is not measured.
    """
    age = np.where(reused, age_seconds / REUSED_FACTOR, age_seconds)
    return age + namespace_idle_seconds
