"""``ChunkTable`` against a model that keeps a table for each thing it remembers, and forgets none.

KVSHELF_TEST_SEQUENCES says how many sequences of transitions are tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvshelf.vllm.scheduler.chunk_record import Answer
from kvshelf.vllm.scheduler.chunk_table import JOURNAL_SECONDS, ChunkTable

HIT, MISS, PENDING = Answer.HIT, Answer.MISS, Answer.PENDING
HIT_SECONDS, MISS_SECONDS, FAILED_SECONDS = 30, 3, 60
RANKS = 2
KEYS = [b"a", b"b", b"c", b"d"]
SEQUENCES = int(os.environ.get("KVSHELF_TEST_SEQUENCES", "150"))

key_of = st.sampled_from(KEYS)
some_keys = st.lists(key_of, unique=True)


class Model:
    """One plain table a question."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.answers: dict[bytes, tuple[Answer, float]] = {}  # and when it expires
        self.storing: set[bytes] = set()
        self.believed: set[bytes] = set()  # to be stored, as far as anybody was told
        self.again: set[bytes] = set()  # of these, those to be stored anew
        self.ranks: dict[bytes, int] = {}
        self.lately: dict[bytes, float] = {}
        self.bad: set[bytes] = set()
        self.told: set[bytes] = set()
        self.touches: dict[bytes, int] = {}
        self.touched: dict[bytes, float] = {}
        self.wanted: list[bytes] = []

    def answer(self, key: bytes) -> Answer | None:
        return self.answers.get(key, (None, 0))[0]

    def is_stored(self, key: bytes) -> bool:
        return key in self.storing or key in self.believed - self.again

    def tell(self, key: bytes) -> bool:
        news = key not in self.told
        self.told.add(key)
        return news

    def stored(self, key: bytes) -> None:
        self.storing.discard(key)
        self.again.discard(key)
        self.believed.add(key)

    def not_stored(self, key: bytes) -> bool:
        was = key in self.storing | self.believed
        for each in (self.storing, self.believed, self.again):
            each.discard(key)
        return was

    def ask(self, keys: Iterable[bytes], *, is_prefix: bool = False) -> list[bytes]:
        unknown = []
        for key in keys:
            if is_prefix and self.answer(key) is MISS:
                break
            if self.answer(key) is None:
                self.answers[key] = PENDING, float("inf")
                unknown.append(key)
        return unknown

    def missed(self, key: bytes, now: float, since: float) -> bool:
        if self.lately.get(key, float("-inf")) >= since:
            return False
        self.answers[key] = MISS, now + MISS_SECONDS
        if key in self.storing:
            return False
        self.ranks.pop(key, None)
        return self.not_stored(key) and self.tell(key)

    def published(self, ranks: dict[bytes, int], now: float) -> tuple[Any, ...]:
        done, healed = [], 0
        for key, news in ranks.items():
            self.ranks[key] = self.ranks.get(key, 0) | news
            if self.ranks[key] == 2**RANKS - 1:
                done.append(key)
                del self.ranks[key]
                healed += key in self.bad
                self.bad.discard(key)
                self.told.discard(key)
                self.stored(key)
                self.lately[key] = now
                self.answers[key] = HIT, now + HIT_SECONDS
        return done, {key: t for key in done if (t := self.touches.pop(key, 0))}, healed

    def evicted(self, key: bytes, now: float, *, tells: bool) -> bool:
        if key in self.storing:
            return False
        self.ranks.pop(key, None)
        if self.lately.get(key, float("-inf")) > now - JOURNAL_SECONDS:
            if self.answer(key) is not PENDING:
                self.answers[key] = PENDING, float("inf")
                self.wanted.append(key)
            return False
        is_known = self.answer(key) is not None or key in self.believed
        news = is_known and self.missed(key, now, float("inf"))
        return news or ((is_known or tells) and self.tell(key))

    def expire(self, now: float) -> None:
        self.answers = {key: value for key, value in self.answers.items() if value[1] > now}


class Unbounded(RuleBasedStateMachine):
    """Every transition has the model's effects, and leaves the model's state."""

    keys_max = 1000

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.model = Model()
        # By key, the ranks that have published it since it was last known to be absent.
        self.since: dict[bytes, int] = {}
        self.table = ChunkTable(
            hit_ttl_seconds=HIT_SECONDS,
            miss_ttl_seconds=MISS_SECONDS,
            failed_ttl_seconds=FAILED_SECONDS,
            keys_max=self.keys_max,
            num_workers=RANKS,
        )

    @initialize(tells=st.booleans())
    def begin(self, tells: bool) -> None:
        self.tells = tells  # whether anybody is told of evictions

    def absent(self, key: bytes) -> None:
        self.since.pop(key, None)

    def is_storing(self, key: bytes) -> bool:
        """As far as the table knows, which may have forgotten it."""
        return key in self.table.storing_keys()

    def same(self, real: Any, expected: Any) -> None:
        assert self.keys_max < len(KEYS) or real == expected

    def same_news(self, real: bool, expected: bool) -> None:
        if self.tells:
            self.same(real, expected)

    @rule(key=key_of)
    def lookup(self, key: bytes) -> None:
        """As the scheduler's hot path does."""
        record = self.table.records.get(key)
        if record is None:
            self.table.records[key] = self.table.asked
            self.table.wanted.append(key)
        elif record.answer is None:
            self.table.wanted += self.table.ask((key,))
        self.model.wanted += self.model.ask([key])

    @rule()
    def take_wanted(self) -> None:
        self.same(list(self.table.take_wanted()), self.model.wanted)
        self.model.wanted = []

    @rule(keys=some_keys, is_prefix=st.booleans())
    def prefetch(self, keys: list[bytes], is_prefix: bool) -> None:
        asked = self.table.ask(keys, is_prefix=is_prefix)
        self.same(list(asked), self.model.ask(keys, is_prefix=is_prefix))

    @rule(key=key_of)
    def found(self, key: bytes) -> None:
        self.table.found(key, self.now)
        self.model.answers[key] = HIT, self.now + HIT_SECONDS
        self.model.stored(key)

    @rule(key=key_of, ago=st.sampled_from([0.0, 1.0, 50.0]))
    def missed(self, key: bytes, ago: float) -> None:
        record = self.table.records.get(key)
        if not self.is_storing(key) and (record is None or record.published_at < self.now - ago):
            self.absent(key)
        real = self.table.missed(key, self.now, self.now - ago)
        self.same_news(real, self.model.missed(key, self.now, self.now - ago))

    @rule(key=key_of)
    def unanswered(self, key: bytes) -> None:
        self.table.unanswered(key, self.now)
        self.model.answers[key] = MISS, self.now + MISS_SECONDS

    @rule(key=key_of, is_unasked=st.booleans())
    def no_answer(self, key: bytes, is_unasked: bool) -> None:
        (self.table.unasked if is_unasked else self.table.stale)(key)
        if self.model.answer(key) is PENDING:
            del self.model.answers[key]
        if is_unasked and key in self.model.believed:
            self.model.again.add(key)

    @rule(key=key_of)
    def failed(self, key: bytes) -> None:
        real = self.table.failed(key, self.now)
        self.model.answers[key] = MISS, self.now + FAILED_SECONDS
        self.model.bad.add(key)
        self.model.ranks.pop(key, None)
        self.absent(key)
        self.same_news(real, self.model.not_stored(key) and self.model.tell(key))

    @rule(key=key_of, seconds=st.sampled_from([2.0, 5.0]))
    def unread(self, key: bytes, seconds: float) -> None:
        self.table.unread(key, self.now, seconds)
        self.model.answers[key] = MISS, self.now + seconds

    @rule(key=key_of, touch_ns=st.integers(0, 3))
    def storing(self, key: bytes, touch_ns: int) -> None:
        self.table.storing(key, touch_ns)
        self.model.not_stored(key)
        self.model.storing.add(key)
        self.model.ranks.pop(key, None)
        self.absent(key)
        self.model.touches[key] = touch_ns

    @rule(key=key_of)
    def dropped(self, key: bytes) -> None:
        self.table.dropped(key)
        self.model.not_stored(key)
        self.model.ranks.pop(key, None)
        self.absent(key)
        self.model.touches.pop(key, None)

    @rule(ranks=st.dictionaries(key_of, st.integers(1, 2**RANKS - 1)))
    def published(self, ranks: dict[bytes, int]) -> None:
        for key, news in ranks.items():
            self.since[key] = self.since.get(key, 0) | news
        real = self.table.published(ranks, self.now)
        self.same(tuple(real), self.model.published(ranks, self.now))

    @rule(keys=some_keys)
    def used(self, keys: list[bytes]) -> None:
        never = float("-inf")
        due = [key for key in keys if self.now - self.model.touched.get(key, never) >= 20]
        self.model.touched.update(dict.fromkeys(due, self.now))
        self.same(self.table.due(keys, self.now, 20), due)

    @rule(key=key_of)
    def evicted(self, key: bytes) -> None:
        if not self.is_storing(key):
            self.absent(key)
        real = self.table.evicted(key, self.now, tells=self.tells)
        self.same_news(real, self.model.evicted(key, self.now, tells=self.tells))

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.5, 20.0, 95.0]))
    def step(self, seconds: float) -> None:
        self.now += seconds
        self.table.expire(self.now)
        self.model.expire(self.now)
        assert len(self.table._order) <= self.keys_max

    @precondition(lambda self: self.model.answers)
    @rule()
    def forget(self) -> None:
        self.table.forget()
        self.model.forget()
        self.since.clear()

    @invariant()
    def the_model_agrees(self) -> None:
        for key in KEYS:
            self.same(self.table.answer(key), self.model.answer(key))
            self.same(self.table.is_stored(key), self.model.is_stored(key))
            # However much is forgotten, nothing is served or left out that the model would not, or
            # that not every rank has published: a table that forgot one report of two takes the
            # next two together, where the model has begun anew.
            if self.since.get(key) != 2**RANKS - 1:
                assert self.table.answer(key) is not HIT or self.model.answer(key) is HIT
                assert not self.table.is_stored(key) or self.model.is_stored(key)
        self.same(set(self.table.storing_keys()), self.model.storing)

    @invariant()
    def each_record_is_in_order_once(self) -> None:
        own = {k: r for k, r in self.table.records.items() if r is not self.table.asked}
        assert sorted(record.key for record in self.table._order) == sorted(own)
        assert all(record.key == key for key, record in own.items())
        assert self.table.asked.answer is PENDING


class Bounded(Unbounded):
    """A table that may forget: it never knows more than the model."""

    keys_max = 2


tried = settings(
    max_examples=SEQUENCES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestUnbounded = Unbounded.TestCase
TestUnbounded.settings = tried
TestBounded = Bounded.TestCase
TestBounded.settings = tried
