"""What the scheduler's process knows of chunks: one record a key (``chunk_record`` has its states).
No I/O, no threads, no vLLM.

Transitions return their effects: keys to ask, whether to tell that a chunk is evicted, touches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvshelf.config import Settings
from kvshelf.vllm.scheduler.chunk_record import FOREVER, NEVER, Answer, Record, Store

# A call of ``expire`` drops so many answers whose time is over: two milliseconds of the scheduler's
# thread. So many records at most get a second chance.
EXPIRED_KEYS_A_STEP = 4096
# An eviction may be heard of so late: an NFS client may believe an old folder for a minute.
JOURNAL_SECONDS = 90.0

# Names for the hot path: an attribute of an enum is slow.
_HIT, _MISS, _PENDING = Answer.HIT, Answer.MISS, Answer.PENDING
_WANTED, _STORING, _STORED, _AGAIN = Store.WANTED, Store.STORING, Store.STORED, Store.AGAIN


class Published(NamedTuple):
    """
    Attributes:
        keys: of the chunks that every rank has now; each is to be told as stored.
        touches: of some of them, the time of use that they are to get, in ns.
        healed: how many had failed to load.
    """

    keys: list[bytes]
    touches: dict[bytes, int]
    healed: int


class ChunkTable:
    """Owned by the scheduler's thread. The caller gives the time.

    Args:
        hit_ttl_seconds: how long a found chunk is believed to be there.
        miss_ttl_seconds: how long an absent one is believed to be absent (others may store it).
        failed_ttl_seconds: how long a chunk that failed to load is not tried again.
        keys_max: records, at least 1. ``expire`` drops the oldest, later those learned of again.
        num_workers: how many ranks must have a chunk before it counts as published.

    Attributes:
        records: by key. Lookups read it, and put ``asked`` there for a key without a record.
        asked: stands for the records of keys of which nothing is known but that they are PENDING.
        wanted: keys to ask for at the end of the step, all of them PENDING.
    """

    def __init__(
        self,
        *,
        hit_ttl_seconds: float,
        miss_ttl_seconds: float,
        failed_ttl_seconds: float,
        keys_max: int,
        num_workers: int = 1,
    ) -> None:
        self._hit_ttl_seconds = hit_ttl_seconds
        self._miss_ttl_seconds = miss_ttl_seconds
        self._failed_ttl_seconds = failed_ttl_seconds
        self._keys_max = keys_max
        self.num_workers = num_workers
        self._every_rank = (1 << num_workers) - 1
        self.records: dict[bytes, Record] = {}
        self.asked = Record(b"", _PENDING)
        self.wanted: list[bytes] = []
        self._order: deque[Record] = deque()  # all but ``asked``, the oldest first
        # One queue a time to live, so that each is in the order of expiry. An answer that changed
        # has another time in its record, and the older entry is ignored.
        self._queues: dict[float, deque[tuple[float, Record]]] = {}
        self._last_expiry = NEVER  # of all that was ever found or missed

    @classmethod
    def of(cls, settings: Settings, num_workers: int) -> ChunkTable:
        """With a user's settings."""
        return cls(
            hit_ttl_seconds=settings.hit_ttl_seconds,
            miss_ttl_seconds=settings.miss_ttl_seconds,
            failed_ttl_seconds=settings.failed_ttl_seconds,
            keys_max=settings.presence_keys_max,
            num_workers=num_workers,
        )

    def answer(self, key: bytes) -> Answer | None:
        record = self.records.get(key)
        return None if record is None else record.answer

    def is_stored(self, key: bytes) -> bool:
        """Whether it need not be stored."""
        record = self.records.get(key)
        return record is not None and (record.store is _STORED or record.store is _STORING)

    def storing_keys(self) -> list[bytes]:
        """Those whose stores by this engine are under way."""
        return [record.key for record in self._order if record.store is _STORING]

    def ask(self, keys: Sequence[bytes], *, is_prefix: bool = False) -> Sequence[bytes]:
        """Those of the keys that must be asked for; they are PENDING now.

        Args:
            is_prefix: keys behind one that is known to be missing are of no use.
        """
        records = self.records
        if records.keys().isdisjoint(keys):  # a new prompt of 4,096 keys skips the loop
            records.update(dict.fromkeys(keys, self.asked))
            return keys
        unknown = []
        for key in keys:
            record = records.get(key)
            if record is None:
                records[key] = self.asked
            elif record.answer is None:
                self._pend(record)
            elif is_prefix and record.answer is _MISS:
                break
            else:
                continue
            unknown.append(key)
        return unknown

    def found(self, key: bytes, now: float) -> None:
        """A lookup found it."""
        record = self._own(key)
        record.store = _STORED
        self._settle(record, _HIT, now, self._hit_ttl_seconds)

    def missed(self, key: bytes, now: float, since: float = FOREVER) -> bool:
        """A lookup that began at ``since`` did not find it. Whether to tell that it is evicted."""
        record = self._own(key)
        if record.published_at >= since:
            return False  # looked for before it was there
        self._settle(record, _MISS, now, self._miss_ttl_seconds)
        if record.store is _STORING:
            return False
        record.ranks = 0
        if record.store is _WANTED:
            return False
        record.store = _WANTED
        return _is_news(record)

    def unanswered(self, key: bytes, now: float) -> None:
        """A lookup failed or came too late: a miss for now, but nothing is known for storing."""
        self._settle(self._own(key), _MISS, now, self._miss_ttl_seconds)

    def stale(self, key: bytes) -> None:
        """A lookup of it says nothing."""
        record = self.records.get(key)
        if record is self.asked:
            del self.records[key]
        elif record is not None and record.answer is _PENDING:
            record.answer = None

    def unasked(self, key: bytes) -> None:
        """The file system was not asked, because a chunk before it is missing. So it is stored anew
        together with that one, unless we are at it: else a prefix that was evicted would come back
        by one chunk a request."""
        self.stale(key)
        record = self.records.get(key)
        if record is not None and record.store is _STORED:
            record.store = _AGAIN

    def failed(self, key: bytes, now: float) -> bool:
        """A load failed for a fault of the chunk: not tried again for a while, and stored anew when
        recomputed. Whether to tell that it is evicted."""
        record = self._own(key)
        was_stored = record.store is not _WANTED
        self._expire_at(record, _MISS, now, self._failed_ttl_seconds)
        record.store = _WANTED
        record.ranks = 0
        record.is_bad = True
        return was_stored and _is_news(record)

    def unread(self, key: bytes, now: float, ttl_seconds: float) -> None:
        """A load failed for no fault of the chunk: it is there, and tried again sooner. But not at
        once: the very request whose load failed asks again."""
        self._expire_at(self._own(key), _MISS, now, ttl_seconds)

    def storing(self, key: bytes, touch_ns: int = 0) -> None:
        """A store was handed out; ``published``, ``dropped`` or ``failed`` ends this."""
        record = self._own(key)
        record.store = _STORING
        record.ranks = 0
        record.touch_ns = touch_ns

    def dropped(self, key: bytes) -> None:
        """A store of it was dropped or failed."""
        record = self.records.get(key)
        if record is not None and record is not self.asked:
            record.store = _WANTED
            record.ranks = 0
            record.touch_ns = 0

    def published(self, ranks: Mapping[bytes, int], now: float) -> Published:
        """Some ranks, a bit each, have published each key."""
        done = Published([], {}, 0)
        healed = 0
        for key, news in ranks.items():
            record = self._own(key)
            record.ranks |= news
            if record.ranks != self._every_rank:
                continue
            done.keys.append(key)
            healed += record.is_bad
            if record.touch_ns:
                done.touches[key] = record.touch_ns
            record.ranks = record.touch_ns = 0
            record.is_bad = record.is_told = False
            record.store = _STORED
            record.published_at = now
            self._settle(record, _HIT, now, self._hit_ttl_seconds)
        return done._replace(healed=healed)

    def due(self, keys: Iterable[bytes], now: float, interval_seconds: float) -> list[bytes]:
        """Those of the keys that were not touched for so long; they count as touched now."""
        due = []
        for key in keys:
            record = self._own(key)
            if now - record.touched_at >= interval_seconds:
                record.touched_at = now
                due.append(key)
        return due

    def evicted(self, key: bytes, now: float, *, tells: bool) -> bool:
        """A replica evicted it some time ago. Whether to tell that it is evicted.

        Args:
            tells: anybody is told at all; else nothing is remembered of a key without a record.
        """
        record = self.records.get(key)
        if record is not None and record.store is _STORING:
            return False  # it was evicted before, and soon is there again
        if record is None:
            if not tells:
                return False
            record = self._own(key)
        record.ranks = 0
        if record.published_at > now - JOURNAL_SECONDS:
            if record.answer is not _PENDING:  # it was evicted before we stored it, or after
                self._pend(record)
                self.wanted.append(key)
            return False
        if record.answer is not None or record.store is not _WANTED:
            if self.missed(key, now):
                return True
            record = self.records[key]
        return _is_news(record)

    def expire(self, now: float) -> None:
        """Drop answers whose time is over: all of them after a pause in which that of every hit and
        miss ended, else EXPIRED_KEYS_A_STEP at most. Then drop records beyond keys_max."""
        left = EXPIRED_KEYS_A_STEP if self._last_expiry > now else FOREVER
        for queue in self._queues.values():
            while queue and left > 0 and queue[0][0] <= now:
                left -= 1
                expires, record = queue.popleft()
                if record.expires == expires:
                    record.answer = None
        chances = EXPIRED_KEYS_A_STEP
        while len(self._order) > self._keys_max:
            record = self._order.popleft()
            if record.is_fresh and chances:
                chances -= 1
                record.is_fresh = False
                self._order.append(record)
            else:
                del self.records[record.key]

    def take_wanted(self) -> tuple[bytes, ...]:
        """Keys to ask for now."""
        keys = tuple(self.wanted)
        self.wanted.clear()  # the same list: lookups append to it
        return keys

    def forget(self) -> None:
        """Drop everything; lookups under way still answer."""
        self.records.clear()  # the same dict: lookups read it
        self.wanted.clear()
        self._order.clear()
        self._queues.clear()

    def _own(self, key: bytes) -> Record:
        """The key's record, to be changed."""
        record = self.records.get(key)
        if record is None or record is self.asked:
            record = self.records[key] = Record(key, None if record is None else _PENDING)
            self._order.append(record)
        else:
            record.is_fresh = True
        return record

    def _pend(self, record: Record) -> None:
        record.answer, record.expires = _PENDING, FOREVER

    def _settle(self, record: Record, answer: Answer, now: float, ttl_seconds: float) -> None:
        self._last_expiry = max(self._last_expiry, now + ttl_seconds)
        self._expire_at(record, answer, now, ttl_seconds)

    def _expire_at(self, record: Record, answer: Answer, now: float, ttl_seconds: float) -> None:
        record.answer = answer
        record.expires = expires = now + ttl_seconds
        if ttl_seconds not in self._queues:
            self._queues[ttl_seconds] = deque()
        self._queues[ttl_seconds].append((expires, record))


def _is_news(record: Record) -> bool:
    """Whether nobody was told yet that it is evicted; now somebody is."""
    is_news = not record.is_told
    record.is_told = True
    return is_news
