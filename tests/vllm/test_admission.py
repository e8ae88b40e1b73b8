"""Load or compute: what is faster, as far as it was measured."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from kvshelf.vllm.scheduler.admission import (
    PRIOR_TOKENS_PER_SECOND,
    Admission,
    Rate,
    Verdict,
    spread,
)
from kvshelf.vllm.scheduler.step_clock import StepClock

CHUNK_TOKENS = 100
MB = 10**6


def admission(**settings: object) -> Admission:
    given = {"min_hit_tokens": 0, "compare": True, "chunk_bytes": 10 * MB, **settings}
    made = Admission(**given)  # type: ignore[arg-type]
    made.computed(1000, 0.1)  # 10,000 tokens a second
    return made


def decide(made: Admission, chunks: int, now: float = 0.0) -> Verdict:
    return made.decide(chunks * CHUNK_TOKENS, chunks, now)


def test_nothing_known_is_measured_first() -> None:
    assert decide(admission(), 10) is Verdict.MEASURE


def test_storage_that_is_faster_is_used_and_slower_is_not() -> None:
    fast, slow = admission(), admission()
    fast.measured(1000 * MB, 0.5, 0.0)  # 200 chunks a second; 100 are computed in one
    slow.measured(1000 * MB, 2.0, 0.0)  # 50 chunks a second
    assert decide(fast, 10) is Verdict.LOAD
    assert decide(slow, 10) is Verdict.COMPUTE


def test_what_waits_does_not_count() -> None:
    made = admission()
    made.measured(1000 * MB, 0.5, 0.0)
    made.load_begins(1000)
    assert decide(made, 10) is Verdict.LOAD


@pytest.mark.parametrize("ranks", [1, 3, 6, 24])
def test_shares_of_ranks_leave_nothing_waiting(ranks: int) -> None:
    """Each of them reports its share of a load; thirds do not add up to whole numbers."""
    made = admission()
    made.measured(1000 * MB, 2.0, 0.0)
    for chunks in range(1, 200):
        made.load_begins(chunks)
        for _ in range(ranks):
            made.load_ends(chunks / ranks, chunks / ranks, chunks / 50 / ranks, 1.0)
    assert decide(made, 10, 1e6) is Verdict.MEASURE


def test_little_evidence_must_speak_louder() -> None:
    made = admission()
    made.load_begins(16)
    made.load_ends(16, 16, 0.2, 0.0)  # 80 chunks a second; 100 are computed
    assert decide(made, 10, 0.1) is Verdict.LOAD
    made.load_begins(16)
    made.load_ends(16, 16, 0.2, 0.2)
    assert decide(made, 10, 0.3) is Verdict.COMPUTE


def test_after_a_load_that_failed_nothing_is_known() -> None:
    made = admission()
    made.measured(1000 * MB, 2.0, 0.0)
    assert decide(made, 10, 1.0) is Verdict.COMPUTE
    made.load_begins(100)
    made.load_ends(100, 99, 5.0, 5.0)
    assert decide(made, 10, 5.1) is Verdict.MEASURE


def test_a_rate_that_speaks_against_loading_is_measured_again_when_it_is_old() -> None:
    made = admission()
    made.measured(1000 * MB, 2.0, 0.0)
    assert decide(made, 10, 29.0) is Verdict.COMPUTE
    assert decide(made, 10, 31.0) is Verdict.MEASURE
    made.measured(1000 * MB, 0.5, 31.0)
    assert decide(made, 10, 31.0) is Verdict.LOAD
    assert decide(made, 10, 9999.0) is Verdict.LOAD  # loading will tell


def test_small_loads_do_not_speak_against_a_large_one() -> None:
    made = admission()
    made.load_begins(1)
    made.load_ends(1, 1, 0.05, 0.0)  # a load of one chunk takes as long as one of many
    assert decide(made, 1, 0.1) is Verdict.COMPUTE
    assert decide(made, 100, 10.0) is Verdict.MEASURE
    made.measured(1000 * MB, 2.0, 10.0)
    assert decide(made, 100, 10.5) is Verdict.COMPUTE  # not more often than every two seconds


def test_short_hits_are_computed_and_all_others_loaded_if_one_says_so() -> None:
    made = admission(min_hit_tokens=500, compare=False)
    assert decide(made, 4) is Verdict.COMPUTE
    assert decide(made, 5) is Verdict.LOAD


def test_before_anything_was_computed_a_usual_speed_is_assumed() -> None:
    made = Admission(min_hit_tokens=0, compare=True, chunk_bytes=10 * MB)
    chunks_per_second = PRIOR_TOKENS_PER_SECOND / CHUNK_TOKENS
    made.measured(10 * MB * chunks_per_second * 1.1, 1.0, 0.0)
    assert decide(made, 10) is Verdict.LOAD
    made.measured(10 * MB * chunks_per_second * 0.9, 1.0, 0.0)
    assert decide(made, 10) is Verdict.COMPUTE


def test_decoding_says_nothing_of_prefill() -> None:
    made = admission()
    made.measured(1000 * MB, 0.5, 0.0)
    for _ in range(1000):
        made.computed(32, 0.02)  # 1,600 tokens a second
    assert decide(made, 10) is Verdict.LOAD
    for _ in range(1000):
        made.computed(4000, 0.1)  # 40,000
    assert decide(made, 10) is Verdict.COMPUTE


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.value() is None
    for _ in range(100):
        rate.add(1, 1)
    for _ in range(20):
        rate.add(10, 1)
    assert 9.5 < (rate.value() or 0) <= 10


def test_spread_takes_keys_from_everywhere() -> None:
    keys = [bytes([i]) for i in range(100)]
    assert spread(keys, 4) == [keys[0], keys[25], keys[50], keys[75]]
    assert spread(keys[:3], 8) == keys[:3]


def test_a_step_lasts_from_its_scheduling_or_the_end_of_the_one_before() -> None:
    clock = StepClock(steps_max=2, tells_all=False)
    assert clock.ends(0.0, has_news=False) is None
    clock.begins(100, 1.0)
    clock.begins(50, 1.5)  # scheduled ahead
    assert clock.ends(3.0, has_news=False) == (100, 2.0)
    assert clock.ends(4.0, has_news=True) == (50, 1.0)
    for tokens in range(5):
        clock.begins(tokens, 5.0)  # ends that were never told
    assert clock.ends(6.0, has_news=False) == (3, 1.0)


@pytest.mark.parametrize("steps_max", [1, 2, 3, 5])
@pytest.mark.parametrize("tells_all", [False, True], ids=["one worker", "several workers"])
def test_steps_without_tokens_do_not_shift_the_others(steps_max: int, tells_all: bool) -> None:
    """While a request waits for its load there are steps without tokens, of whose ends a single
    worker tells only those with news: a prefill must not get the time of a decoding step."""
    made, clock = admission(), StepClock(steps_max=steps_max, tells_all=tells_all)
    now = 0.0
    under_way: list[tuple[int, float, bool]] = []

    def step(tokens: int, seconds: float, *, has_news: bool = False) -> None:
        nonlocal now
        clock.begins(tokens, now)
        under_way.append((tokens, seconds, has_news))
        if len(under_way) < steps_max:
            return
        tokens, seconds, has_news = under_way.pop(0)
        now += seconds
        if tokens or has_news or tells_all:
            told = clock.ends(now, has_news=has_news)
            if told is not None:
                made.computed(*told)

    for _ in range(20):
        for _ in range(10):
            step(0, 0.001)
        step(0, 0.001, has_news=True)
        for _ in range(steps_max - 1):
            step(0, 0.001)  # scheduled before the news were told
        step(4000, 0.2, has_news=True)
        for _ in range(50):
            step(1, 0.01)
    assert 0.5 < made.compute_seconds(20_000) < 1.5
