"""Which chunks go first. Pure; the one place to change the order of eviction.

Least recently used, with two exceptions for which a file's own times are enough. Measured on two
request traces (Mooncake's: 12,031 requests of an hour of chat, 3,993 of a synthetic mix) at 1, 2,
5, 10, 20 and 50% of what they fill; mean hits in percent of all blocks, chat / synthetic
(``benchmarks/bench_policy.py``, ``results/policy.json``):

    the optimum, which knows the future     34.94  43.52
    this                                    22.98  25.45
    LRU, the head of a prompt used last     22.64  25.27
    LRU, the tail of a prompt used last     22.49  24.96
    hazard rate by class, from the ages     22.45  25.16
    of what is on the shelf
    FIFO                                    20.96  23.97
    random                                  10.92   6.66

So order by use is nearly all of it, and what is beyond LRU is small: by capacity -1.0 to +1.3.
With touches at most every 600 s the mean is 22.70 / 24.18 (LRU 22.39 / 24.44), because an hour is
short for that; if the traces ran 24 times slower, 22.93 / 25.30 (LRU 22.63 / 25.16).
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
        age_seconds: float64[chunks], since the last use (``kvshelf.disk.usetime``).
        reused: bool[chunks], whether it was touched after it was stored.
        namespace_idle_seconds: float64[chunks], since the last use of any chunk of its namespace.

    It grows with age. Touches make the tail of a prompt older than its head, and whoever touches a
    chunk touches all before it, so what is left of a prompt is its head. (Where a request renews
    only the times that are due, a head may be older than its tail by the touch interval.)

    **Used again.** At most ages a chunk that was used again is used once more at two to three times
    the rate of one that never was. On the first halves of the traces (slowed, touches every 600 s)
    factors of 2 to 4 were best and about equal, 0.3 to 0.5 points above LRU, so the smallest was
    taken; on the second halves it gives +0.3 and -0.1. It also keeps what is shared when many
    prompts that nobody repeats come by.

    **Idle namespaces.** A model that nobody asks any more is not asked again soon. Its idle time
    counts once more, so that a whole namespace goes before whatever was used after it fell idle.
    The traces have one namespace each: this is not measured.
    """
    age = np.where(reused, age_seconds / REUSED_FACTOR, age_seconds)
    return age + namespace_idle_seconds
