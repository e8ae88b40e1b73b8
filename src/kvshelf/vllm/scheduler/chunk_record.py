"""What is known of one chunk, and its states.

A record answers two questions. Is the chunk on the shelf? (``Record.answer``)

    None -- ask --> PENDING -- found ----------------> HIT --+
     ^                 |  '--- missed, unanswered --> MISS --+
     |                 +-- unasked, stale                    |
     +-----------------+---------------------------- expire -+

    in any state:  published by every rank -> HIT     failed, unread, evicted -> MISS
                   evicted less than JOURNAL_SECONDS after published -> PENDING: asked anew

Must it be stored? (``Record.store``; both STORED and STORING answer no)

    WANTED -- storing --> STORING -- published, found --> STORED -- unasked --> AGAIN
       |---------------------------- found -----------------^                    |
       ^---- dropped, failed ----+------ missed, evicted ---+--------------------+

STORING stays what it is when a lookup misses or an eviction is heard of: the store brings the chunk
back. ``answer`` expires, ``store`` does not: the price of a stale STORED is only that a chunk which
was evicted is not stored anew until a lookup misses it. A failed load is a MISS for longer, so that
a request cannot try it again for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NEVER = float("-inf")
FOREVER = float("inf")


class Answer(Enum):
    HIT = "hit"
    MISS = "miss"
    PENDING = "pending"


class Store(Enum):
    WANTED = "wanted"
    STORING = "storing"
    STORED = "stored"
    AGAIN = "again"


@dataclass(slots=True, eq=False)
class Record:
    """
    Attributes:
        answer: whether the chunk is on the shelf; None: nobody asked, or the answer expired.
        expires: when a HIT or MISS does, by the caller's clock.
        store: whether this engine must store it.
        ranks: that have published it, a bit each, while others have not; none of before it was
            missed, evicted or failed.
        published_at: when every rank of this engine had, at last.
        is_bad: a load of it failed, and it is not stored anew yet.
        is_told: events said that it is evicted, and not since that it is stored.
        touch_ns: time of use that it gets once it is published; 0: none.
        touched_at: when this engine last touched it.
        is_fresh: it was learned of again since the bound last passed it by.
    """

    key: bytes
    answer: Answer | None = None
    expires: float = FOREVER
    store: Store = Store.WANTED
    ranks: int = 0
    published_at: float = NEVER
    is_bad: bool = False
    is_told: bool = False
    touch_ns: int = 0
    touched_at: float = NEVER
    is_fresh: bool = False
