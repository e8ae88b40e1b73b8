"""The scheduler's belief about chunks: states, times to live, bounds. No clock, no vLLM."""

from __future__ import annotations

import pytest

from kvshelf.vllm.scheduler.presence import EXPIRED_KEYS_A_STEP, Answer, Presence


@pytest.fixture
def presence() -> Presence:
    return Presence(hit_ttl_seconds=30, miss_ttl_seconds=1, failed_ttl_seconds=60, keys_max=100)


def test_unknown_key_has_no_answer(presence: Presence) -> None:
    assert presence.answers.get(b"k") is None
    assert not presence.is_stored(b"k")


def test_found_expires_after_its_time_but_needs_no_store(presence: Presence) -> None:
    presence.found(b"k", now=100)
    presence.expire(now=129.9)
    assert presence.answers[b"k"] is Answer.HIT
    presence.expire(now=130)
    assert b"k" not in presence.answers
    assert presence.is_stored(b"k")


def test_missed_expires_sooner_and_may_be_stored(presence: Presence) -> None:
    presence.found(b"k", now=0)
    presence.missed(b"k", now=10)
    assert presence.answers[b"k"] is Answer.MISS
    assert not presence.is_stored(b"k")
    presence.expire(now=11)
    assert b"k" not in presence.answers


def test_failed_load_stays_a_miss_and_may_be_stored(presence: Presence) -> None:
    presence.found(b"k", now=0)
    presence.failed(b"k", now=0)
    presence.expire(now=59)
    assert presence.answers[b"k"] is Answer.MISS
    assert not presence.is_stored(b"k")
    presence.expire(now=60)
    assert b"k" not in presence.answers


def test_an_older_expiry_does_not_end_a_newer_answer(presence: Presence) -> None:
    presence.missed(b"k", now=0)  # would expire at 1
    presence.found(b"k", now=0.5)  # expires at 30.5
    presence.expire(now=2)
    assert presence.answers[b"k"] is Answer.HIT


def test_failed_then_published_is_a_hit_again(presence: Presence) -> None:
    presence.failed(b"k", now=0)
    presence.storing(b"k")
    presence.found(b"k", now=1)
    assert presence.answers[b"k"] is Answer.HIT


def test_a_probe_that_misses_a_store_under_way_does_not_store_it_twice(presence: Presence) -> None:
    presence.storing(b"k")
    presence.missed(b"k", now=0)
    assert presence.is_stored(b"k")
    presence.not_stored(b"k")
    assert not presence.is_stored(b"k")


def test_an_unanswered_probe_says_nothing_about_storing(presence: Presence) -> None:
    presence.found(b"k", now=0)
    presence.unanswered(b"k", now=1)
    assert presence.answers[b"k"] is Answer.MISS
    assert presence.is_stored(b"k")


def test_both_tables_are_bounded(presence: Presence) -> None:
    for i in range(1000):
        presence.found(b"%d" % i, now=0)
        presence.expire(now=0)
    assert len(presence.answers) <= 100
    assert presence.is_stored(b"999")
    assert not presence.is_stored(b"0")


def test_pending_keys_are_not_expired(presence: Presence) -> None:
    presence.pending([b"k"])
    presence.expire(now=1e9)
    assert presence.answers[b"k"] is Answer.PENDING


def test_much_expires_in_many_steps_but_a_pause_ends_it_at_once() -> None:
    keys = [b"%d" % i for i in range(2 * EXPIRED_KEYS_A_STEP + 1)]
    presence = Presence(
        hit_ttl_seconds=30, miss_ttl_seconds=1, failed_ttl_seconds=60, keys_max=len(keys)
    )
    answers = presence.answers

    def fill() -> None:
        for key in keys:
            presence.found(key, now=0)
        presence.missed(b"late", now=30)

    fill()
    left = []
    for _ in range(4):
        presence.expire(now=30.5)
        left.append(len(answers))
    assert left == [EXPIRED_KEYS_A_STEP + 2, 2, 1, 1] and answers == {b"late": Answer.MISS}
    fill()
    presence.pending([b"asked"])
    presence.expire(now=31)
    assert answers == {b"asked": Answer.PENDING}
    assert answers is presence.answers and presence.is_stored(keys[0])
    # Nothing of the first round ends what is answered in a second one.
    presence.found(keys[0], now=40)
    presence.expire(now=69)
    assert answers[keys[0]] is Answer.HIT


def test_a_pause_ends_hits_also_where_a_load_has_failed(presence: Presence) -> None:
    """A failed load counts for longer than a hit."""
    for key in (b"a", b"b", b"c"):
        presence.found(key, now=0)
    presence.failed(b"c", now=1)
    presence.unread(b"b", now=1, ttl_seconds=40)
    presence.expire(now=31)
    assert presence.answers == {b"c": Answer.MISS, b"b": Answer.MISS}
    presence.expire(now=42)
    assert presence.answers == {b"c": Answer.MISS}
    presence.expire(now=62)
    assert not presence.answers


def test_what_was_not_asked_for_is_stored_anew_unless_we_are_at_it(presence: Presence) -> None:
    presence.found(b"k", now=0)
    presence.storing(b"new")
    presence.pending([b"k", b"new", b"other"])
    for key in (b"k", b"new", b"other"):
        presence.unasked(key)
    assert not presence.answers
    assert not presence.is_stored(b"k") and presence.is_stored(b"new")
    # That it is gone is still to be said, by whoever finds out.
    assert presence.was_stored(b"k") and not presence.was_stored(b"other")
    assert presence.missed(b"k", now=1) and not presence.missed(b"k", now=2)
    assert not presence.missed(b"new", now=1)


def test_forget_drops_everything(presence: Presence) -> None:
    presence.found(b"k", now=0)
    presence.forget()
    presence.expire(now=1)
    assert not presence.answers
    assert not presence.is_stored(b"k")
