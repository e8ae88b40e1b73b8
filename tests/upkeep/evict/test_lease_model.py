"""The lease under every interleaving, clock and fault that hypothesis thinks of.

Each process runs in a thread of its own that stops before every call to the folder; one at a time
goes on, whoever the schedule says. Time is a number. Listings may be old (an NFS client's cache),
renames may be done and yet reported as failed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf.disk.layout import LeaseName, TempOwner
from kvshelf.upkeep.evict.lease import Lease

LEASE_SECONDS = 12.0
SEED = "lease-0000000000-0000000000-0000000000000000-free"
WAIT_SECONDS = 20.0  # of the test itself, for a thread that must go on


@dataclass
class Server:
    """What is true, and what was true before."""

    names: set[str] = field(default_factory=lambda: {SEED})
    history: list[frozenset[str]] = field(default_factory=list)

    def changed(self) -> None:
        self.history.append(frozenset(self.names))


class Process(threading.Thread):
    """One host with a clock of its own: it starts anywhere and runs fast or slow."""

    def __init__(self, server: Server, number: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.server, self.rate, self.time = server, rate, 1000.0 * number
        self.stale = 0  # how many changes ago its listings come from
        self.fault = ""  # of its next rename
        self.parked, self.go = threading.Event(), threading.Event()
        self.is_ending = False
        owner = TempOwner(f"host{number}", "0" * 8, number + 1, 7, 7)
        self.lease = Lease(self, lease_seconds=LEASE_SECONDS, owner=owner, clock=lambda: self.time)

    def run(self) -> None:
        self._park()
        while not self.is_ending:
            try:
                self.lease.tick()
            except OSError:
                assert not self.lease.is_held
            self._park()

    def _park(self) -> None:
        self.parked.set()
        assert self.go.wait(WAIT_SECONDS)
        self.go.clear()

    def step(self) -> None:
        """Let it go on to its next call, or to the end of its tick."""
        self.parked.clear()
        self.go.set()
        assert self.parked.wait(WAIT_SECONDS)

    def end(self) -> None:
        self.is_ending = True
        while self.is_alive():
            self.go.set()
            self.join(0.01)

    # The folder, as this process sees it.

    def names(self) -> list[str]:
        self._park()
        history = self.server.history
        stale = min(self.stale, len(history))
        return sorted(self.server.names if stale == 0 else history[-stale])

    def create(self, name: str) -> None:
        self._park()
        self.server.changed()
        self.server.names.add(name)

    def rename(self, old: str, new: str) -> bool:
        self._park()
        fault, self.fault = self.fault, ""
        if fault == "not done":
            raise OSError("before it was done")
        if old not in self.server.names:
            return False
        self.server.changed()
        self.server.names.remove(old)
        self.server.names.add(new)
        if fault == "done":
            raise OSError("after it was done")
        return fault != "done, not found"

    def remove(self, name: str) -> None:
        self._park()
        self.server.changed()
        self.server.names.discard(name)


@contextmanager
def processes(rates: list[float], names: set[str] | None = None) -> Iterator[list[Process]]:
    server = Server() if names is None else Server(names)
    made = [Process(server, number, rate) for number, rate in enumerate(rates)]
    for process in made:
        process.start()
        assert process.parked.wait(WAIT_SECONDS)
    try:
        yield made
    finally:
        for process in made:
            process.end()


def pass_time(made: list[Process], seconds: float) -> None:
    for process in made:
        process.time += seconds * process.rate


FAULTS = ("not done", "done", "done, not found")
rates = st.lists(st.floats(0.85, 1.15), min_size=2, max_size=4)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 3), st.integers(1, 9)),
        st.tuples(st.just("time"), st.sampled_from([1.0, 4.1, 5.0, 9.0, 13.0]), st.just(0)),
        st.tuples(st.just("stale"), st.integers(0, 3), st.integers(0, 5)),
        st.tuples(st.just("fault"), st.integers(0, 3), st.integers(0, 2)),
    ),
    max_size=80,
)


def run(made: list[Process], todo: list[tuple[str, float, int]]) -> None:
    for what, number, count in todo:
        if what == "time":
            pass_time(made, number)
        elif what == "step":
            for _ in range(count):
                made[int(number) % len(made)].step()
                held = [process for process in made if process.lease.is_held]
                assert len(held) <= 1, "two holders"
        elif what == "stale":
            made[int(number) % len(made)].stale = count
        else:
            made[int(number) % len(made)].fault = FAULTS[count]
        assert len(made[0].server.names) == 1, "the lease was lost or doubled"


def calm(made: list[Process], seconds: float, step_seconds: float = 1.0) -> None:
    """All see what is true, nothing fails, and everybody looks in time."""
    for process in made:
        process.stale, process.fault = 0, ""
    for _ in range(int(seconds / step_seconds)):
        pass_time(made, step_seconds)
        for process in made:
            for _ in range(8):
                process.step()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(rates=rates, todo=actions)
def test_there_are_never_two_and_soon_there_is_one(
    rates: list[float], todo: list[tuple[str, float, int]]
) -> None:
    with processes(rates) as made:
        run(made, todo)
        calm(made, 4 * LEASE_SECONDS)
        assert sum(process.lease.is_held for process in made) == 1


def test_a_holder_that_dies_is_followed_within_its_time() -> None:
    with processes([1.0, 1.0, 1.0]) as made:
        calm(made, 6)
        (holder,) = [process for process in made if process.lease.is_held]
        others = [process for process in made if process is not holder]
        calm(others, LEASE_SECONDS - 2)
        assert not any(process.lease.is_held for process in others)
        calm(others, 2 + LEASE_SECONDS / 3 + 1)
        assert sum(process.lease.is_held for process in others) == 1


def test_a_holder_that_sleeps_does_not_count_itself_in_when_it_wakes() -> None:
    with processes([1.0, 1.0]) as made:
        calm(made, 6)
        (holder,) = [process for process in made if process.lease.is_held]
        (other,) = [process for process in made if process is not holder]
        calm([other], 2 * LEASE_SECONDS)
        holder.time += 2 * LEASE_SECONDS
        assert other.lease.is_held
        assert not holder.lease.is_held
        calm(made, 6)
        assert other.lease.is_held and not holder.lease.is_held
        assert holder.lease.lost == 1


def test_a_holder_that_hangs_counts_itself_out_before_others_do() -> None:
    with processes([1.15, 0.85]) as made:
        calm(made, 6)
        (hung,) = [process for process in made if process.lease.is_held]
        for _ in range(4):
            (other,) = [process for process in made if process is not hung]
            while not other.lease.is_held:
                pass_time(made, 0.5)
                for _ in range(8):
                    other.step()
                    assert not (hung.lease.is_held and other.lease.is_held)
            hung = other


def test_a_renewal_that_was_done_and_reported_as_failed_loses_nothing() -> None:
    for fault in ("done", "not done"):
        with processes([1.0, 1.0]) as made:
            calm(made, 6)
            (holder,) = [process for process in made if process.lease.is_held]
            holder.fault = fault
            pass_time(made, 4.5)
            for _ in range(8):
                holder.step()
            assert not holder.lease.is_held  # it cannot know
            pass_time(made, 4.5)
            for _ in range(8):
                holder.step()
            assert holder.lease.is_held
            assert (holder.lease.taken, holder.lease.lost) == (1, 0)


def test_a_lease_that_was_taken_and_reported_as_not_is_taken_up() -> None:
    for fault in ("done", "done, not found"):
        with processes([1.0]) as made:
            made[0].fault = fault
            for _ in range(8):
                made[0].step()
            assert not made[0].lease.is_held
            pass_time(made, 4.5)
            for _ in range(8):
                made[0].step()
            assert made[0].lease.is_held


def test_of_two_leases_one_remains() -> None:
    """Somebody restored a backup, or removed the folder while it was held."""
    owners = [TempOwner(f"h{i}", "0" * 8, 1, 7, 7) for i in range(2)]
    two = {str(LeaseName(3, 5, c * 16, owner)) for c, owner in zip("ab", owners, strict=True)}
    with processes([1.0, 1.0], two) as made:
        calm(made, 3 * LEASE_SECONDS)
        assert sum(process.lease.is_held for process in made) == 1
        assert len(made[0].server.names) == 1


def test_a_removed_lease_is_made_again_once() -> None:
    with processes([1.0, 1.0, 1.0], set()) as made:
        calm(made, LEASE_SECONDS - 2)
        assert made[0].server.names == set()
        calm(made, LEASE_SECONDS)
        assert sum(process.lease.is_held for process in made) == 1
        assert len(made[0].server.names) == 1


def test_a_holder_whose_lease_was_removed_notices() -> None:
    with processes([1.0, 1.0]) as made:
        calm(made, 6)
        made[0].server.names.clear()
        calm(made, LEASE_SECONDS / 3 + 1)
        assert not any(process.lease.is_held for process in made)
        calm(made, 2 * LEASE_SECONDS)
        assert sum(process.lease.is_held for process in made) == 1
