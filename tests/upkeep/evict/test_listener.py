"""A duty with a listener of its own, as ``kvshelf evict`` runs it."""

from __future__ import annotations

from pathlib import Path

from kvshelf.disk.root import open_root
from kvshelf.disk.volume import Volume
from kvshelf.upkeep.evict.duty import EvictionDuty
from kvshelf.upkeep.evict.lease import open_lease
from kvshelf.upkeep.evict.limits import Amount, Limits, Need
from kvshelf.upkeep.evict.report import Report, State
from tests.upkeep.evict.test_duty import Steps


def test_without_turns_every_step_is_its_own_and_a_listener_hears_it(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    open_lease(root, lease_seconds=60).tick()  # another's
    heard: list[str] = []
    reported: list[Report] = []

    class Hears:
        def begins(self) -> None:
            heard.append("begins")

        def waits(self, reason: str, holder: str) -> None:
            heard.append("waits")

        def stands_back(self, *, can_remove: bool) -> None:
            heard.append("stands back")

        def failed(self, part: str, error: Exception) -> None:
            heard.append(f"{part}: {error}")

        def noted(self, cause: str, text: str) -> None:
            heard.append(text)

        def reported(self, report: Report) -> None:
            reported.append(report)
            if len(reported) == 3:
                duty.stop()

    need = Need(Amount(5, 5), "shelf_bytes")
    stuck = Report(State.STUCK, Volume(0, 1), needs=(need,))
    duty = EvictionDuty(
        root,
        None,
        limits=Limits(shelf_bytes=1),
        lease_seconds=2.0,
        evictor=Steps(lambda: stuck),
        listener=Hears(),
        by_turns=False,
        interval_seconds=0.01,
    )
    duty.start()
    assert duty.ended(30)
    assert reported == [stuck] * 3 and heard == [] and not duty.has_news
