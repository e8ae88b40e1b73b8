"""What an engine hears of a shelf of many namespaces costs little while nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvshelf.upkeep.evict import Amount, Report, State, Volume
from kvshelf.upkeep.evict import news as news_module
from kvshelf.upkeep.evict.limits import Usage, total
from kvshelf.upkeep.evict.news import NewsBox
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
