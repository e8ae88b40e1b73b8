"""The phases of an evictor, against the facts that each stands for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf.upkeep.evict.phase import TRANSITIONS, Event, Phase


class Facts:
    """What has happened, one fact each: what a phase stands for."""

    def __init__(self) -> None:
        self.known = False  # all folders were scanned once
        self.evicting = False  # down to the low marks
        self.fresh = False  # scanned since the limit was exceeded
        self.ahead = False  # chunks used ahead of the clock are candidates

    def happens(self, event: Event) -> None:
        if event is Event.SCAN_ENDED:
            self.known = self.fresh = True
        elif event is Event.EXCEEDED:
            self.evicting = True
        elif event in (Event.WITHIN, Event.LEFT):
            self.evicting = self.fresh = self.ahead = False
        elif event is Event.SAMPLE_USED:
            self.evicting = False
        elif not self.ahead:
            self.ahead = True
        else:
            self.fresh = self.ahead = False

    def possible(self) -> Iterator[Event]:
        yield from (Event.SCAN_ENDED, Event.WITHIN, Event.LEFT)
        if not self.evicting:
            yield Event.EXCEEDED
        elif not self.known:
            yield Event.SAMPLE_USED
        elif self.fresh:
            yield Event.FRUITLESS


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_every_phase_says_what_has_happened(data: st.DataObject) -> None:
    facts, phase = Facts(), Phase.LEARNING
    for _ in range(data.draw(st.integers(0, 30))):
        possible = list(facts.possible())
        assert {event for event in Event if phase in TRANSITIONS[event]} == set(possible)
        event = data.draw(st.sampled_from(possible))
        facts.happens(event)
        phase = phase.after(event)
        assert phase.is_known == facts.known
        assert phase.is_evicting == facts.evicting
        assert phase.is_fresh == facts.fresh
        assert (phase is Phase.AHEAD) == facts.ahead


def test_every_phase_can_be_reached_and_ended() -> None:
    reached = {Phase.LEARNING}
    for _ in Phase:
        reached |= {table[each] for table in TRANSITIONS.values() for each in reached & set(table)}
    assert reached == set(Phase) and set(TRANSITIONS) == set(Event)
    for phase in Phase:
        assert any(table.get(phase, phase) is not phase for table in TRANSITIONS.values())


def test_what_cannot_happen_is_refused() -> None:
    with pytest.raises(KeyError):
        Phase.RESTING.after(Event.FRUITLESS)
