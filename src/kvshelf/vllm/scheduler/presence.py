"""What the scheduler's process believes about chunks on the shelf. No I/O, no threads, no vLLM.

Owned by the scheduler's thread. Time is given by the caller, so that tests need no clock.

A key is in one of these states:

    (unknown)   nobody asked, or the answer has expired: probe it
    PENDING     a probe is under way
    HIT         a probe found it, or this engine published it, less than hit_ttl_seconds ago
    MISS        a probe did not find it, less than miss_ttl_seconds ago, or it failed to load less
                than failed_ttl_seconds ago (so that a request cannot try it again for ever)

Beside that, ``stored`` remembers keys that need not be stored again: found, published or being
stored by this engine. It has no time to live, because the price of a stale entry is only that a
chunk which somebody removed is not stored anew until a probe misses it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum

from kvshelf.config import Settings

# A call of ``expire`` drops so many whose time is over: two milliseconds of the scheduler's thread.
EXPIRED_KEYS_A_STEP = 4096


class Answer(Enum):
    HIT = "hit"
    MISS = "miss"
    PENDING = "pending"


class Presence:
    """Answers with a time to live, bounded in number; the oldest go first.

    Args:
        hit_ttl_seconds: how long a found chunk is believed to be there.
        miss_ttl_seconds: how long an absent one is believed to be absent (others may store it).
        failed_ttl_seconds: how long a chunk that failed to load is not tried again.
        keys_max: number of keys remembered in each of the two tables, at least 1.
    """

    def __init__(
        self,
        *,
        hit_ttl_seconds: float,
        miss_ttl_seconds: float,
        failed_ttl_seconds: float,
        keys_max: int,
    ) -> None:
        self._ttl_seconds = {Answer.HIT: hit_ttl_seconds, Answer.MISS: miss_ttl_seconds}
        self._failed_ttl_seconds = failed_ttl_seconds
        self._keys_max = keys_max
        # The hot path of lookups reads this dict and nothing else.
        self.answers: dict[bytes, Answer] = {}
        # Expiry of the answers that are not PENDING. A key that was answered anew has a later time
        # here than in the queue, whose older entry is then ignored.
        self._expires: dict[bytes, float] = {}
        # One queue a time to live, so that each is in the order of expiry.
        self._queues: dict[float, deque[tuple[float, bytes]]] = {}
        self._last_expiry = 0.0  # of all that was ever found or missed
        # Value: whether a store by this engine is still under way; None: it is to be stored anew,
        # though nobody has said that it is gone.
        self._stored: OrderedDict[bytes, bool | None] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> Presence:
        """With a user's settings."""
        return cls(
            hit_ttl_seconds=settings.hit_ttl_seconds,
            miss_ttl_seconds=settings.miss_ttl_seconds,
            failed_ttl_seconds=settings.failed_ttl_seconds,
            keys_max=settings.presence_keys_max,
        )

    def pending(self, keys: Iterable[bytes]) -> None:
        """Probes for these keys were submitted."""
        self.answers.update(dict.fromkeys(keys, Answer.PENDING))

    def found(self, key: bytes, now: float) -> None:
        self._settle(key, Answer.HIT, now, self._ttl_seconds[Answer.HIT])
        self._remember(key, under_way=False)

    def missed(self, key: bytes, now: float) -> bool:
        """It is not there: it may be stored, unless we are at it. True if it was thought to be."""
        self._settle(key, Answer.MISS, now, self._ttl_seconds[Answer.MISS])
        if self._stored.get(key, True):
            return False
        del self._stored[key]
        return True

    def unanswered(self, key: bytes, now: float) -> None:
        """A probe failed or came too late: a miss for now, but nothing is known for storing."""
        self._settle(key, Answer.MISS, now, self._ttl_seconds[Answer.MISS])

    def failed(self, key: bytes, now: float) -> None:
        """A load of it failed: not tried again for a while, and stored anew when recomputed."""
        self._expire_at(key, Answer.MISS, now + self._failed_ttl_seconds, self._failed_ttl_seconds)
        self._stored.pop(key, None)

    def unread(self, key: bytes, now: float, ttl_seconds: float) -> None:
        """A load of it failed for no fault of the chunk: it is there, and tried again sooner. But
        not at once: the very request whose load failed asks again."""
        self._expire_at(key, Answer.MISS, now + ttl_seconds, ttl_seconds)

    def unknown(self, key: bytes) -> None:
        """A probe of it says nothing."""
        if self.answers.get(key) is Answer.PENDING:
            del self.answers[key]

    def unasked(self, key: bytes) -> None:
        """A probe of it was not made, because a chunk before it is missing. So it is stored anew
        together with that one, unless we are at it: else a prefix that somebody removed would come
        back by one chunk a request."""
        self.unknown(key)
        if self._stored.get(key) is False:
            self._stored[key] = None

    def not_stored(self, key: bytes) -> None:
        """A store of it was dropped or failed."""
        self._stored.pop(key, None)

    def storing(self, key: bytes) -> None:
        """A store of it was handed out; ``found``, ``failed`` or ``not_stored`` ends this."""
        self._remember(key, under_way=True)

    def _remember(self, key: bytes, *, under_way: bool) -> None:
        self._stored[key] = under_way
        self._stored.move_to_end(key)
        if len(self._stored) > self._keys_max:
            self._stored.popitem(last=False)

    def is_storing(self, key: bytes) -> bool:
        """Whether a store by this engine is under way."""
        return bool(self._stored.get(key))

    def storing_keys(self) -> list[bytes]:
        """Those whose stores by this engine are under way."""
        return [key for key, under_way in self._stored.items() if under_way]

    def is_stored(self, key: bytes) -> bool:
        return self._stored.get(key) is not None

    def was_stored(self, key: bytes) -> bool:
        """Whether it was thought to be, as far as anybody was told."""
        return key in self._stored

    def forget(self) -> None:
        """Drop every answer and everything remembered; probes under way still answer."""
        self.answers.clear()
        self._expires.clear()
        self._queues.clear()
        self._stored.clear()

    def expire(self, now: float) -> None:
        """Drop the oldest answers beyond keys_max, and those whose time is over: all of them after
        a pause in which that of every hit and miss ended, else EXPIRED_KEYS_A_STEP at most."""
        if self._last_expiry <= now and self._expires:
            self._expire_all(now)
            return
        left = EXPIRED_KEYS_A_STEP
        for queue in self._queues.values():
            while queue and (
                len(self._expires) > self._keys_max or (left > 0 and queue[0][0] <= now)
            ):
                expires, key = queue.popleft()
                left -= 1
                if self._expires.get(key) == expires:
                    del self._expires[key]
                    self.answers.pop(key, None)

    def _expire_all(self, now: float) -> None:
        """Many times quicker than one by one. What is pending stays, and failed loads."""
        pending: list[bytes] = []
        if Answer.PENDING in self.answers.values():  # quicker by far than to list none
            pending = [key for key, answer in self.answers.items() if answer is Answer.PENDING]
        failed = [
            (ttl_seconds, expires, key)
            for ttl_seconds, queue in self._queues.items()
            if queue and queue[-1][0] > now
            for expires, key in queue
            if expires > now and self._expires.get(key) == expires
        ]
        self.answers.clear()  # the same dict: others read it
        self.pending(pending)
        self._expires.clear()
        self._queues.clear()
        for ttl_seconds, expires, key in failed:
            self._expire_at(key, Answer.MISS, expires, ttl_seconds)
            self._last_expiry = max(self._last_expiry, expires)  # not before that again

    def _settle(self, key: bytes, answer: Answer, now: float, ttl_seconds: float) -> None:
        expires = now + ttl_seconds
        self._last_expiry = max(self._last_expiry, expires)
        self._expire_at(key, answer, expires, ttl_seconds)

    def _expire_at(self, key: bytes, answer: Answer, expires: float, ttl_seconds: float) -> None:
        self.answers[key] = answer
        self._expires[key] = expires
        self._queues.setdefault(ttl_seconds, deque()).append((expires, key))
