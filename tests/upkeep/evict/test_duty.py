"""The background duty of an engine: who evicts, what others hear, and that it harms nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk.layout import EVICT_FOLDER, parse_lease_name
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_root
from kvshelf.disk.volume import Volume
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.evict import duty as duty_module
from kvshelf.upkeep.evict import news as news_module
from kvshelf.upkeep.evict import turn as turn_module
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.limits import Amount, Limits, Need
from kvshelf.upkeep.evict.news import News
from kvshelf.upkeep.evict.report import Held, Report, State
from tests.upkeep.evict.shelves import ShelfMaker

FOLDER = Identity({"model": "tiny"}).folder
CHUNK_BYTES = 64 << 10


def add_chunks(root: Path, count: int) -> list[bytes]:
    """Chunks of which the first is the oldest; the keys."""
    maker = ShelfMaker(root)
    return [maker.add(10_000 - i, size=CHUNK_BYTES).key for i in range(count)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 0.02)
    return open_root(tmp_path / "shelf")


@contextmanager
def duties(root: Path, count: int = 1, **changes: Any) -> Iterator[list[EvictionDuty]]:
    arguments: dict[str, Any] = {
        "limits": Limits(shelf_bytes=20 * CHUNK_BYTES),
        "lease_seconds": 2.0,
        **changes,
    }
    made = [EvictionDuty(root, FOLDER, **arguments) for _ in range(count)]
    try:
        for duty in made:
            duty.start()
        deadline = time.monotonic() + 20
        while any(duty._reader._offsets is None for duty in made):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        yield made
    finally:
        for duty in made:
            duty.close(10)


class Heard:
    """All news of a duty together."""

    def __init__(self, duty: EvictionDuty) -> None:
        self.duty = duty
        self.news = News()

    def until(self, is_enough: Callable[[News], bool], seconds: float = 30.0) -> News:
        deadline = time.monotonic() + seconds
        while not is_enough(self.news):
            assert time.monotonic() < deadline, self.news
            time.sleep(0.01)
            if not self.duty.has_news:
                continue
            more, old = self.duty.take(), self.news
            more.removed_files += old.removed_files
            more.removed_bytes += old.removed_bytes
            more.gone = {**old.gone, **more.gone}
            more.faults = old.faults + more.faults
            more.pass_seconds = more.pass_seconds or old.pass_seconds
            self.news = more
        return self.news


def test_a_limit_is_kept_and_what_went_is_told(root: Path) -> None:
    with duties(root) as (duty,):
        heard = Heard(duty)
        heard.until(lambda news: news.is_holder)
        keys = add_chunks(root, 40)
        news = heard.until(lambda news: news.pass_seconds is not None and len(news.gone) >= 21)
        left = list(root.rglob("*.kv"))
        assert sum(path.stat().st_size for path in left) <= 20 * CHUNK_BYTES
        assert news.removed_files == 40 - len(left) == len(news.gone)
        assert news.removed_bytes == news.removed_files * CHUNK_BYTES
        assert set(news.gone) == set(keys[: len(news.gone)])  # the oldest
        assert set(news.shelf) == {FOLDER}
        assert news.faults == []


def test_others_hear_of_it_and_one_takes_over(root: Path) -> None:
    with duties(root, 3) as made:
        heard = [Heard(duty) for duty in made]
        add_chunks(root, 40)
        for each in heard:
            each.until(lambda news: len(news.gone) >= 21)
        (holder,) = [each for each in heard if each.news.removed_files]
        assert [each.news.gone for each in heard] == [holder.news.gone] * 3
        assert holder.duty.close(10)
        rest = [each for each in heard if each is not holder]
        deadline = time.monotonic() + 20
        while not any(each.until(lambda news: True).is_holder for each in rest):
            for each in rest:
                if each.duty.has_news:
                    each.news = each.duty.take()
            assert time.monotonic() < deadline


def test_without_limits_it_only_listens(root: Path) -> None:
    with duties(root, limits=Limits()) as (duty,):
        time.sleep(0.2)
        assert not (root / EVICT_FOLDER).exists()
        with duties(root) as (other,):
            add_chunks(root, 40)
            Heard(other).until(lambda news: news.removed_files > 0)
            Heard(duty).until(lambda news: len(news.gone) > 0)


class Steps:
    """An evictor that does what a test says."""

    def __init__(self, step: Callable[[], Report]) -> None:
        self._step = step

    def __call__(self, *_: Any, **__: Any) -> Steps:
        return self

    def step(self, seconds_max: float = 1.0) -> Report:
        return self._step()

    def stop(self) -> None:
        return

    def leave(self) -> None:
        return


IDLE = Report(State.IDLE, Volume(0, 1))


def test_an_evictor_that_fails_is_counted_and_leaves_it_to_another(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Report:
        raise PermissionError(13, "no")

    with duties(root, evictor=Steps(fail)) as (bad,):
        news = Heard(bad).until(lambda news: bool(news.faults))
        assert [(fault.part, fault.errno) for fault in news.faults] == [("evict", "EACCES")]
        assert not news.is_holder
        with duties(root, evictor=Steps(lambda: IDLE)) as (good,):
            Heard(good).until(lambda news: news.is_holder)


def test_a_root_that_is_another_directory_now_is_opened_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_module, "STAND_BACK_SECONDS", 0.1)
    made: list[Steps] = []

    def step() -> Report:
        if len(made) == 1:
            raise NotAShelfError("another directory than it was")
        return IDLE

    def make(*_: Any, **__: Any) -> Steps:
        made.append(Steps(step))
        return made[-1]

    with duties(root, evictor=make) as (duty,):
        heard = Heard(duty)
        heard.until(lambda news: bool(news.faults) and len(made) == 2 and news.is_holder)


def test_removals_that_are_refused_leave_it_to_another(root: Path) -> None:
    refused = Report(State.EVICTING, Volume(0, 1), faults={13: 7})
    with duties(root, evictor=Steps(lambda: refused)) as (bad,):
        news = Heard(bad).until(lambda news: bool(news.faults) and not news.is_holder)
        assert [(fault.errno, fault.times) for fault in news.faults] == [("EACCES", 7)]
        with duties(root, evictor=Steps(lambda: IDLE)) as (good,):
            Heard(good).until(lambda news: news.is_holder)


def test_who_can_remove_nothing_that_is_to_go_leaves_it_to_another(root: Path) -> None:
    """As where all files are immutable to one node."""
    need = Need(Amount(5, 5 * CHUNK_BYTES), "shelf_bytes")
    stuck = Report(State.STUCK, Volume(0, 1), needs=(need,))
    with (
        duties(root, evictor=Steps(lambda: stuck)) as (bad,),
        duties(root, evictor=Steps(lambda: IDLE)) as (good,),
    ):
        Heard(good).until(lambda news: news.is_holder)
        Heard(bad).until(lambda news: not news.is_holder)


def test_what_is_held_is_told_while_another_is_left_to_try(root: Path) -> None:
    need = Need(Amount(5, 5 * CHUNK_BYTES), "shelf_bytes")
    held = Held(Amount(5, 5 * CHUNK_BYTES), {1: 5})
    stuck = Report(State.STUCK, Volume(0, 1), needs=(need,), held=held)
    with duties(root, evictor=Steps(lambda: stuck)) as (duty,):
        heard = Heard(duty)
        heard.until(lambda news: news.held_chunks == 5 and not news.is_holder)
        woken = time.monotonic() + 10 * duty_module.WAKE_SECONDS
        heard.until(lambda _: time.monotonic() > woken)
        assert duty._turn.stands_back and duty.take().held_chunks == 5


def test_who_loses_the_lease_or_fails_leaves_nothing_under_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_module, "STAND_BACK_SECONDS", 0.1)
    made: list[Steps] = []
    left: list[Steps] = []

    class Leaves(Steps):
        def leave(self) -> None:
            left.append(self)

    def step() -> Report:
        if len(made) == 1:
            raise OSError(116, "stale")
        return Report(State.EVICTING, Volume(0, 1), faults={13: 1})

    def make(*_: Any, **__: Any) -> Steps:
        made.append(Leaves(step))
        return made[-1]

    with duties(root, evictor=make):
        deadline = time.monotonic() + 20
        while len(left) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len(made) == 2 and set(left) == {made[1]}  # what failed is made anew


def test_who_is_stuck_goes_on_saying_so_while_it_stands_back(root: Path) -> None:
    """It leaves the lease for seconds; an alert has minutes to see the state."""
    stuck = Report(
        State.STUCK, Volume(0, 1), needs=(Need(Amount(5, 5), "shelf_bytes"),), held=Held(Amount(5))
    )
    looked = 0
    with duties(root, evictor=Steps(lambda: stuck)) as (duty,):
        heard = Heard(duty)
        heard.until(lambda news: news.state is State.STUCK and not news.is_holder)
        is_ours = duty._turn.is_ours

        def count() -> bool:
            nonlocal looked
            looked += 1
            return is_ours()

        duty._turn.is_ours = count  # type: ignore[method-assign]
        deadline = time.monotonic() + 30
        while looked < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        news = duty.take()
        assert (news.is_holder, news.state, news.held_chunks) == (False, State.STUCK, 5)


def test_what_must_stay_is_no_reason_to_leave_the_lease(root: Path) -> None:
    steps: list[int] = []

    def step() -> Report:
        steps.append(1)
        return Report(State.STUCK, Volume(0, 1), needs=(Need(Amount(), "volume_percent"),))

    with duties(root, evictor=Steps(step)) as (duty,):
        heard = Heard(duty)
        heard.until(lambda news: news.is_holder and len(steps) > 3)
        assert duty.take().is_holder


def test_the_owner_hears_of_the_file_systems_clock(root: Path) -> None:
    with duties(root, limits=Limits()) as (duty,):
        news = Heard(duty).until(lambda news: news.clock is not None)
        assert news.clock is not None and news.clock.step_ns == 1


def test_a_step_that_hangs_holds_nobody_up(root: Path) -> None:
    hangs, go_on = threading.Event(), threading.Event()

    def hang() -> Report:
        hangs.set()
        go_on.wait(30)
        return IDLE

    with duties(root, evictor=Steps(hang), lease_seconds=1.0) as (duty,):
        assert hangs.wait(20)
        begin = time.monotonic()
        assert not duty.close(0.2)
        duty.take()
        assert time.monotonic() - begin < 5
        # What it holds is another's when its time is over.
        with duties(root, evictor=Steps(lambda: IDLE), lease_seconds=1.0) as (other,):
            Heard(other).until(lambda news: news.is_holder)
        go_on.set()
        assert duty.close(20)


def test_a_limit_that_may_be_exceeded_is_looked_at_sooner(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duty_module, "WAKE_SECONDS", 1.0)
    urgent = replace(IDLE, is_urgent=True)
    with duties(root, evictor=Steps(lambda: urgent)) as (duty,):
        Heard(duty).until(lambda _: duty._wait_seconds == urgent.wait_seconds(1) < 1)


def test_it_ends_at_once_and_leaves_the_lease(root: Path) -> None:
    with duties(root) as (duty,):
        Heard(duty).until(lambda news: news.is_holder)
        assert duty.close(20)
        names = [parse_lease_name(path.name) for path in (root / EVICT_FOLDER).iterdir()]
        assert [name.owner for name in names if name] == [None]
        assert duty.close(0)


def test_a_disk_too_full_for_the_lease_is_emptied_all_the_same(root: Path) -> None:
    class Full:
        """Not even a name can change there."""

        token = "0123456789abcdef"

        def tick(self) -> bool:
            raise OSError(28, "No space left on device")

        def release(self) -> None:
            return

    add_chunks(root, 40)
    with duties(root, lease=Full()) as (duty,):
        news = Heard(duty).until(lambda news: news.removed_files >= 21)
        assert {fault.errno for fault in news.faults} == {"ENOSPC"}


def test_a_lease_that_cannot_be_used_stops_eviction(root: Path) -> None:
    add_chunks(root, 40)
    (root / EVICT_FOLDER).write_text("somebody's file")
    with duties(root) as (duty,):
        news = Heard(duty).until(lambda news: len(news.faults) >= 3)
        assert news.removed_files == 0 and not news.is_holder
        assert {fault.part for fault in news.faults} == {"lease"}


def test_its_thread_has_a_low_priority(root: Path) -> None:
    nice: list[int] = []

    def look() -> Report:
        nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return IDLE

    with duties(root, evictor=Steps(look)) as (duty,):
        Heard(duty).until(lambda news: news.is_holder)
        deadline = time.monotonic() + 10
        while not nice and time.monotonic() < deadline:
            time.sleep(0.01)
    assert nice[0] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10) or nice[0] == 10


def test_what_waits_for_the_owner_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "KEYS_MAX", 5)
    with duties(root) as (duty,):
        add_chunks(root, 40)
        deadline = time.monotonic() + 30
        while duty._box._news.dropped < 16:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(duty.take().gone) == 5
