"""Whether removal helps: arithmetic of what went and what the volume shows, without files."""

from __future__ import annotations

import pytest

from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.demand import Demand
from kvshelf.upkeep.evict.effect import Effect, Effects, unkept
from kvshelf.upkeep.evict.limits import Amount, Limits, needs

SHELF = 1_000_000
SETTLE = 40.0


def trial(effect: Effect, now: float, used: int, *, shows: float = 0.0, grows: int = 0) -> int:
    """Remove all that is allowed; how much that was, and what is used then."""
    amount = effect.allowance(now, SHELF)
    if amount <= 0:
        return used
    after = used - int(shows * amount) + grows
    effect.removed(now, amount, used, after)
    return after


def test_a_volume_that_shows_it_at_once_lets_a_tenth_go_at_a_time() -> None:
    effect = Effect(SETTLE)
    assert effect.allowance(0, SHELF) == 20_000  # nothing is known
    trial(effect, 0, 5_000_000, shows=1)
    assert not effect.is_pending and effect.allowance(1, SHELF) == 100_000
    assert effect.allowance(700, SHELF) == 20_000  # a snapshot may have been made


@pytest.mark.parametrize("shows", [0.12, 0.5])
def test_a_volume_that_compresses_shows_enough(shows: float) -> None:
    effect = Effect(SETTLE)
    trial(effect, 0, 5_000_000, shows=shows)
    assert not effect.is_pending


@pytest.mark.parametrize("late", [3.0, 15.0, 35.0])
def test_a_late_volume_is_waited_for(late: float) -> None:
    """CephFS, MooseFS, btrfs."""
    effect = Effect(SETTLE)
    trial(effect, 0, 5_000_000)
    for second in range(int(late)):
        effect.saw(second, 5_000_000)
        assert effect.is_pending and effect.allowance(second, SHELF) <= 0
    effect.saw(late, 4_980_000)
    assert not effect.is_pending and effect.lag_seconds == late
    assert effect.allowance(late, SHELF) == 100_000


def test_what_does_not_show_is_not_repeated() -> None:
    effect = Effect(SETTLE)
    lost, now = 0, 0.0
    while now < 86_400:
        amount = max(0, effect.allowance(now, SHELF)) if not effect.is_held else 0
        if amount:
            effect.removed(now, amount, 5_000_000, 5_000_000)
            lost += amount
        effect.saw(now, 5_000_000)
        if now == 60:
            assert effect.is_held and lost == 20_000
        now += 10
    # Tried again after 1, 2, 4 ... 240 minutes, with a tenth of the first trial.
    assert 20_000 < lost <= 20_000 + 14 * 2_000


def test_numbers_that_move_end_the_wait_at_once() -> None:
    effect = Effect(SETTLE)
    trial(effect, 0, 5_000_000)
    effect.saw(41, 5_000_000)
    assert effect.is_held
    effect.saw(42, 4_900_000)  # the snapshot was removed
    assert not effect.is_held and effect.allowance(42, SHELF) == 2_000
    trial(effect, 43, 4_900_000, shows=1)
    assert effect.allowance(44, SHELF) == 100_000


def test_growth_across_removals_does_not_hide_them() -> None:
    """Others write as much in a second as went: the fall is in the removal itself."""
    effect = Effect(SETTLE)
    used, now = 5_000_000, 0.0
    for _ in range(100):
        used = trial(effect, now, used, shows=1)
        assert not effect.is_pending
        used += 30_000
        effect.saw(now + 0.5, used)
        now += 1
        assert not effect.is_held


def test_growth_that_hides_it_on_a_late_volume_is_no_verdict_at_first() -> None:
    effect = Effect(SETTLE)
    used, lost, now = 5_000_000, 0, 0.0
    while not effect.is_held:
        amount = max(0, effect.allowance(now, SHELF))
        effect.removed(now, amount, used, used)
        lost += amount
        now, used = now + 1, used + 1_000
        effect.saw(now, used)
        assert now < 1000
    assert now > 2 * SETTLE and lost <= 60_000  # but not for ever


def test_others_that_remove_less_than_what_shows_are_no_effect() -> None:
    effect = Effect(SETTLE)
    trial(effect, 0, 5_000_000)
    effect.saw(41, 5_000_000 - 1_000)
    assert effect.is_held


def test_the_other_limits_go_on_while_one_is_held() -> None:
    volume = Volume(95, 100, 95, 100)
    limits = Limits(volume_percent=90, inode_percent=90, shelf_bytes=40, keep_percent=0)
    usage = {"a": Amount(50, 50)}
    [need] = needs(limits, volume, usage, held={"volume_percent": 1})
    assert need.amount.bytes == 12 and need.reason == "shelf_bytes" and need.short.bytes == 10
    [need] = needs(Limits(volume_percent=90), volume, usage, held={"volume_percent": 1})
    assert not need.amount and need.short.bytes == 10 and need.reason == "volume_percent"


def test_inodes_that_are_not_counted_are_not_waited_for() -> None:
    effects = Effects(SETTLE)
    before, after = (Volume(used, 1000, inodes_unknown="0 of 0") for used in (900, 800))
    effects.removed(0, Amount(10, 100), before, after)
    effects.saw(SETTLE + 1, after)
    assert not effects.held()
    assert effects.limited("inode_percent", Amount(50, 0), 0, Amount(100, 100)) == Amount(2, 0)


def test_limits_that_no_volume_keeps_are_named() -> None:
    volume = Volume(0, 0, bytes_unknown="0 of 0", inodes_unknown="all ones")
    limits = Limits(volume_percent=90, inode_percent=90, shelf_bytes=1)
    assert unkept(limits, volume) == {"volume_percent": "0 of 0", "inode_percent": "all ones"}
    assert unkept(Limits(shelf_bytes=1), volume) == {}
    assert unkept(limits, Volume(1, 2, 1, 2)) == {}


def test_failing_stores_get_a_twentieth_and_a_tenth_a_minute_at_most() -> None:
    demand, shelf, now = Demand(), Amount(1000, SHELF), 0.0
    gone: list[tuple[float, int]] = []
    while now < 600 and not demand.is_vain(now):
        demand.asked(now, shelf)
        need = demand.need()
        if need is not None:
            assert need.reason == "stores_failed" and need.amount.bytes <= 0.05 * SHELF
            demand.removed(now, Amount(10, need.amount.bytes))
            gone.append((now, need.amount.bytes))
            shelf = Amount(shelf.files, shelf.bytes - need.amount.bytes)
        for begin, _ in gone:
            minute = sum(amount for at, amount in gone if begin <= at < begin + 60)
            assert minute <= 0.1 * SHELF
        now += 1
    # It never helped: no more goes.
    assert demand.is_vain(now) and 0.3 * SHELF <= sum(amount for _, amount in gone) <= 0.36 * SHELF
    assert demand.requests == now
    assert not demand.is_vain(now + 130)  # nobody asks any more


def test_stores_that_succeed_again_end_it() -> None:
    demand, shelf = Demand(), Amount(1000, SHELF)
    for episode in range(20):
        now = episode * 1000.0
        demand.asked(now, shelf)
        need = demand.need()
        assert need is not None
        demand.removed(now, need.amount + Amount(1, 0))
        assert demand.need() is None and not demand.is_vain(now)


def test_an_empty_shelf_has_nothing_to_give() -> None:
    demand = Demand()
    demand.asked(0, Amount())
    assert demand.need() is None
