"""What the scheduler knows of chunks: states, effects, times to live, the bound. No clock, no vLLM.

``test_chunk_table_model.py`` checks sequences of transitions against a simple model.
"""

from __future__ import annotations

import pytest

from kvshelf.vllm.scheduler.chunk_record import Answer
from kvshelf.vllm.scheduler.chunk_table import EXPIRED_KEYS_A_STEP, JOURNAL_SECONDS, ChunkTable

HIT, MISS, PENDING = Answer.HIT, Answer.MISS, Answer.PENDING


def make(keys_max: int = 100, num_workers: int = 1) -> ChunkTable:
    return ChunkTable(
        hit_ttl_seconds=30,
        miss_ttl_seconds=1,
        failed_ttl_seconds=60,
        keys_max=keys_max,
        num_workers=num_workers,
    )


@pytest.fixture
def table() -> ChunkTable:
    return make()


def test_unknown_key_has_no_answer(table: ChunkTable) -> None:
    assert table.answer(b"k") is None
    assert not table.is_stored(b"k")


def test_found_expires_after_its_time_but_needs_no_store(table: ChunkTable) -> None:
    table.found(b"k", now=100)
    table.expire(now=129.9)
    assert table.answer(b"k") is HIT
    table.expire(now=130)
    assert table.answer(b"k") is None
    assert table.is_stored(b"k")


def test_missed_expires_sooner_and_may_be_stored(table: ChunkTable) -> None:
    table.found(b"k", now=0)
    table.missed(b"k", now=10)
    assert table.answer(b"k") is MISS
    assert not table.is_stored(b"k")
    table.expire(now=11)
    assert table.answer(b"k") is None


def test_failed_load_stays_a_miss_and_may_be_stored(table: ChunkTable) -> None:
    table.found(b"k", now=0)
    table.failed(b"k", now=0)
    table.expire(now=59)
    assert table.answer(b"k") is MISS
    assert not table.is_stored(b"k")
    table.expire(now=60)
    assert table.answer(b"k") is None


def test_an_older_expiry_does_not_end_a_newer_answer(table: ChunkTable) -> None:
    table.missed(b"k", now=0)  # would expire at 1
    table.found(b"k", now=0.5)  # expires at 30.5
    table.expire(now=2)
    assert table.answer(b"k") is HIT


def test_an_older_expiry_does_not_end_a_question(table: ChunkTable) -> None:
    """Of a chunk that was evicted about when it was published."""
    table.published({b"k": 1}, now=0)
    assert not table.evicted(b"k", now=1, tells=True)
    assert table.take_wanted() == (b"k",)
    table.expire(now=31)
    assert table.answer(b"k") is PENDING


def test_failed_then_published_is_a_hit_again(table: ChunkTable) -> None:
    table.failed(b"k", now=0)
    table.storing(b"k")
    assert table.published({b"k": 1}, now=1) == ([b"k"], {}, 1)
    assert table.answer(b"k") is HIT
    assert table.published({b"k": 1}, now=2).healed == 0


def test_a_lookup_that_misses_a_store_under_way_does_not_store_it_twice(table: ChunkTable) -> None:
    table.storing(b"k")
    table.missed(b"k", now=0)
    assert table.is_stored(b"k")
    table.dropped(b"k")
    assert not table.is_stored(b"k")


def test_an_unanswered_lookup_says_nothing_about_storing(table: ChunkTable) -> None:
    table.found(b"k", now=0)
    table.unanswered(b"k", now=1)
    assert table.answer(b"k") is MISS
    assert table.is_stored(b"k")


def test_the_table_is_bounded_and_the_oldest_goes_first(table: ChunkTable) -> None:
    for i in range(1000):
        table.found(b"%d" % i, now=0)
        table.expire(now=0)
    assert list(table.records) == [b"%d" % i for i in range(900, 1000)]
    assert table.is_stored(b"999")
    assert not table.is_stored(b"0")


def test_what_is_learned_of_again_outlives_what_is_not() -> None:
    table = make(keys_max=10)
    for i in range(100):
        table.found(b"system prompt", now=i)
        table.found(b"%d" % i, now=i)
        table.expire(now=i)
    assert table.answer(b"system prompt") is HIT and len(table.records) == 10


def test_the_bound_costs_no_step_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are fresh: after so many second chances the oldest go all the same."""
    monkeypatch.setattr("kvshelf.vllm.scheduler.chunk_table.EXPIRED_KEYS_A_STEP", 3)
    table = make(keys_max=10)
    keys = [b"%d" % i for i in range(20)]
    for _ in range(2):
        for key in keys:
            table.found(key, now=0)
    table.expire(now=0)
    assert set(table.records) == {*keys[:3], *keys[13:]}


def test_pending_keys_are_not_expired(table: ChunkTable) -> None:
    assert table.ask([b"k"]) == [b"k"]
    table.expire(now=1e9)
    assert table.answer(b"k") is PENDING
    assert table.ask([b"k", b"new"]) == [b"new"]


def test_of_a_prefix_nothing_behind_a_missing_key_is_asked_for(table: ChunkTable) -> None:
    table.found(b"a", now=0)
    table.missed(b"c", now=0)
    assert table.ask([b"a", b"b", b"c", b"d"], is_prefix=True) == [b"b"]
    assert table.ask([b"a", b"b", b"c", b"d"]) == [b"d"]


def test_much_expires_in_many_steps_but_a_pause_ends_it_at_once() -> None:
    keys = [b"%d" % i for i in range(2 * EXPIRED_KEYS_A_STEP + 1)]
    table = make(keys_max=len(keys) + 2)

    def answers() -> dict[bytes, Answer]:
        records = table.records.items()
        return {key: record.answer for key, record in records if record.answer is not None}

    def fill() -> None:
        for key in keys:
            table.found(key, now=0)
        table.missed(b"late", now=30)

    fill()
    left = []
    for _ in range(4):
        table.expire(now=30.5)
        left.append(len(answers()))
    assert left == [EXPIRED_KEYS_A_STEP + 2, 2, 1, 1] and answers() == {b"late": MISS}
    fill()
    table.ask([b"asked"])
    table.expire(now=31)
    assert answers() == {b"asked": PENDING}
    assert table.is_stored(keys[0])
    # Nothing of the first round ends what is answered in a second one.
    table.found(keys[0], now=40)
    table.expire(now=69)
    assert table.answer(keys[0]) is HIT


def test_a_pause_ends_hits_also_where_a_load_has_failed(table: ChunkTable) -> None:
    """A failed load counts for longer than a hit."""
    keys = (b"a", b"b", b"c")
    for key in keys:
        table.found(key, now=0)
    table.failed(b"c", now=1)
    table.unread(b"b", now=1, ttl_seconds=40)
    for now, expected in ((31, [None, MISS, MISS]), (42, [None, None, MISS]), (62, [None] * 3)):
        table.expire(now)
        assert [table.answer(key) for key in keys] == expected


def test_what_was_not_asked_for_is_stored_anew_unless_we_are_at_it(table: ChunkTable) -> None:
    table.found(b"k", now=0)
    table.storing(b"new")
    table.expire(now=30)
    keys = (b"k", b"new", b"other")
    assert table.ask(keys) == list(keys)
    for key in keys:
        table.unasked(key)
    assert [table.answer(key) for key in keys] == [None] * 3
    assert not table.is_stored(b"k") and table.is_stored(b"new")
    # That it is evicted is still to be told, by what finds out.
    assert table.missed(b"k", now=31) and not table.missed(b"k", now=32)
    assert not table.missed(b"new", now=31) and not table.missed(b"other", now=31)


def test_a_lookup_that_began_before_the_chunk_was_published_says_nothing(table: ChunkTable) -> None:
    table.published({b"k": 1}, now=10)
    assert not table.missed(b"k", now=11, since=10) and table.answer(b"k") is HIT
    assert table.missed(b"k", now=12, since=11) and table.answer(b"k") is MISS


def test_an_eviction_is_told_once_until_the_chunk_is_stored(table: ChunkTable) -> None:
    later = 1 + JOURNAL_SECONDS
    assert table.evicted(b"k", now=0, tells=True) and not table.evicted(b"k", now=0, tells=True)
    table.found(b"k", now=1)
    assert not table.failed(b"k", now=1)
    table.published({b"k": 1}, now=1)
    assert table.evicted(b"k", now=later, tells=True) and table.answer(b"k") is MISS
    table.storing(b"k")
    assert not table.evicted(b"k", now=later, tells=True) and table.is_stored(b"k")


def test_of_unknown_keys_evictions_are_remembered_only_to_be_told(table: ChunkTable) -> None:
    assert not table.evicted(b"k", now=0, tells=False)
    assert not table.records


def test_times_of_use_are_given_once_published(table: ChunkTable) -> None:
    for key, time_ns in ((b"a", 5), (b"b", 6), (b"c", 0)):
        table.storing(key, time_ns)
    table.dropped(b"b")
    done = table.published(dict.fromkeys((b"a", b"b", b"c"), 1), now=0)
    assert done.keys == [b"a", b"b", b"c"] and done.touches == {b"a": 5}


def test_what_was_touched_a_moment_ago_is_not_due(table: ChunkTable) -> None:
    assert table.due([b"a", b"b"], 0, 600) == [b"a", b"b"]
    assert table.due([b"a", b"c"], 599, 600) == [b"c"]
    assert table.due([b"a", b"c"], 600, 600) == [b"a"]


def test_forget_drops_everything_but_lookups_under_way_still_answer(table: ChunkTable) -> None:
    records = table.records
    table.found(b"k", now=0)
    table.ask([b"asked"])
    table.wanted.append(b"asked")
    table.forget()
    table.expire(now=1)
    assert not table.records and not table.take_wanted() and not table.is_stored(b"k")
    table.found(b"asked", now=2)
    assert table.answer(b"asked") is HIT and table.records is records


@pytest.mark.parametrize("news", ["evicted", "missed", "failed"])
def test_what_a_rank_published_before_a_chunk_was_absent_does_not_count(news: str) -> None:
    table = make(num_workers=2)
    table.published({b"k": 0b01}, now=0)
    if news == "evicted":
        table.evicted(b"k", now=1, tells=True)
    else:
        getattr(table, news)(b"k", now=1)
    assert table.published({b"k": 0b10}, now=2).keys == []
    assert table.answer(b"k") is not HIT
    assert table.published({b"k": 0b01}, now=3).keys == [b"k"]


def test_a_store_under_way_outlives_the_news_of_an_older_file() -> None:
    table = make(num_workers=2)
    table.storing(b"k")
    table.published({b"k": 0b01}, now=0)
    table.missed(b"k", now=1)
    table.evicted(b"k", now=1, tells=True)
    assert table.published({b"k": 0b10}, now=2).keys == [b"k"]
