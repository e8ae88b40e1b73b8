"""Which chunks go first. Pure: a function of what is known of a chunk, without files or clocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def effective_age(
    age_seconds: NDArray[np.float64],
    reused: NDArray[np.bool_],
    namespace_idle_seconds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The age by which chunks are ordered: the largest goes first. Least recently used.

    Args:
        age_seconds: seconds since each chunk's last use, >= 0.
        reused: whether it was used again after it was stored.
        namespace_idle_seconds: seconds since any chunk of its namespace was used.

    Returns:
        One finite number each; it grows with the age of chunks that are equal in the rest.
    """
    del reused, namespace_idle_seconds
    return np.asarray(age_seconds, dtype=np.float64)
