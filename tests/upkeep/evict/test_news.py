"""What an engine hears of a shelf of many namespaces costs little while nothing changes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvshelf import metrics
from kvshelf.disk.volume import Volume
from kvshelf.faultlog import FaultLog
from kvshelf.upkeep.evict import news as news_module
from kvshelf.upkeep.evict.limits import Amount, Usage, total
from kvshelf.upkeep.evict.news import News, NewsBox
from kvshelf.upkeep.evict.news_metrics import NewsMetrics
from kvshelf.upkeep.evict.report import Report, State
from kvshelf.upkeep.evict.series import with_own_series


def reported(box: NewsBox, usage: Usage) -> None:
    box.reported(Report(State.IDLE, Volume(1, 2), usage=usage))


def test_series_are_chosen_when_the_shelf_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(usage: Usage, **more: object) -> object:
        calls.append(len(usage))
        return with_own_series(usage, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(news_module, "with_own_series", counted)
    box, usage = NewsBox(tmp_path), Usage(a=Amount(1, 10), b=Amount(2, 20))
    for _ in range(5):
        reported(box, usage)
    assert box.take().shelf == usage and calls == [2]
    reported(box, usage)
    assert calls == [2] and not box.has_news
    reported(box, Usage(a=Amount(1, 11)))
    assert box.take().shelf == {"a": Amount(1, 11)} and calls == [2, 1]
    box.waits("", "")  # another has the lease for a while
    box.begins()
    assert box.take().shelf == {}
    reported(box, box._usage)  # type: ignore[arg-type]
    assert box.take().shelf == {"a": Amount(1, 11)}


def test_a_usage_is_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage({"a": Amount(1, 10), "b": Amount(2, 20)})
    assert total(usage) == total(dict(usage)) == Amount(3, 30)
    assert usage.total is total(usage)


def test_what_the_holder_knew_is_0_when_another_holds_the_lease() -> None:
    class Gauges:
        def __init__(self) -> None:
            self.values: dict[tuple[str, ...], float] = {}

        def count(self, name: str, *labels: str, by: float = 1) -> None: ...

        def gauge(self, name: str, value: float, *labels: str) -> None:
            self.values[name, *labels] = value

    gauges = Gauges()
    counted = NewsMetrics(["/a", "/b"], gauges, FaultLog(logging.getLogger("test")))
    counted.count(0, News(True, shelf={"m": Amount(1, 10)}, volume=Volume(1, 2), held_chunks=3))
    counted.count(1, News(True, shelf={"m": Amount(2, 20)}))
    assert gauges.values[metrics.SHELF_BYTES, "m"] == 30
    assert gauges.values[metrics.VOLUME_TOTAL_BYTES, "/a"] == 2
    assert gauges.values[(metrics.EVICT_HELD,)] == 3
    for root in (0, 1):
        counted.count(root, News())
    assert not any(gauges.values.values()) and len(gauges.values) == 11
