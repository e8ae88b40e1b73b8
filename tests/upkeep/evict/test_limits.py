"""How much must go: arithmetic, without files."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.disk.volume import Volume
from kvshelf.errors import ConfigError
from kvshelf.upkeep.evict.limits import Amount, Limits, Need, may_exceed, needs

GB = 10**9
EMPTY = Volume(0, 0)


def one(limits: Limits, volume: Volume, usage: dict[str, Amount], evicting: bool = False) -> Need:
    [need] = needs(limits, volume, usage, evicting)
    return need


def test_nothing_goes_below_the_high_mark_and_all_above_the_low_one_beyond_it() -> None:
    limits = Limits(shelf_bytes=100 * GB, low_percent=90)
    assert needs(limits, EMPTY, {"a": Amount(10, 100 * GB)}) == []
    assert one(limits, EMPTY, {"a": Amount(10, 100 * GB + 1)}).amount == Amount(0, 10 * GB + 1)
    assert one(limits, EMPTY, {"a": Amount(10, 95 * GB)}, evicting=True).amount.bytes == 5 * GB
    assert needs(limits, EMPTY, {"a": Amount(10, 90 * GB)}, evicting=True) == []


def test_percent_counts_what_others_use() -> None:
    limits = Limits(volume_percent=80, low_percent=75, keep_percent=0)
    usage = {"a": Amount(100, 50 * GB)}
    need = one(limits, Volume(81 * GB, 100 * GB), usage)
    assert need == Need(Amount(0, 21 * GB), "volume_percent")


def test_others_data_does_not_shrink_the_shelf_below_its_floor() -> None:
    limits = Limits(volume_percent=80, keep_percent=10)
    need = one(limits, Volume(95 * GB, 100 * GB), {"a": Amount(100, 12 * GB)})
    assert need.amount.bytes == 2 * GB and need.short.bytes == 17 * GB
    need = one(limits, Volume(95 * GB, 100 * GB), {"a": Amount(100, 9 * GB)})
    assert not need.amount and need.short.bytes == 19 * GB


def test_a_limit_of_its_own_shrinks_the_shelf_below_that_floor() -> None:
    limits = Limits(shelf_bytes=5 * GB, low_percent=100, keep_percent=10)
    assert one(limits, Volume(9 * GB, 100 * GB), {"a": Amount(9, 9 * GB)}).amount.bytes == 4 * GB


def test_inodes() -> None:
    limits = Limits(inode_percent=50, low_percent=80)
    usage = {"a": Amount(60, 60 * GB)}
    need = one(limits, Volume(60 * GB, 100 * GB, 55, 100), usage)
    assert need == Need(Amount(15, 0), "inode_percent")
    # Of 60 GB 10 are kept: 50 of the 60 files may go.
    assert one(limits, Volume(60 * GB, 100 * GB, 99, 100), usage).amount == Amount(50, 0)


def test_file_systems_that_do_not_count_inodes() -> None:
    unknown = 2**64 - 1  # CephFS
    for counts in ((0, 0, 0), (unknown, unknown, unknown), (10, unknown, unknown)):
        volume = Volume.from_statvfs(os.statvfs_result((4096, 4096, 100, 40, 30, *counts, 0, 255)))
        assert volume == Volume(60 * 4096, 90 * 4096, 0, 0)
    assert needs(Limits(inode_percent=1), volume, {"a": Amount(5, 5)}) == []
    counted = Volume.from_statvfs(
        os.statvfs_result((4096, 4096, 100, 40, 30, 1000, 300, 200, 0, 255))
    )
    assert (counted.used_inodes, counted.total_inodes) == (700, 900)


def test_namespaces_have_limits_of_their_own() -> None:
    limits = Limits(
        namespace_bytes=10 * GB,
        namespace_bytes_of={"big": 100 * GB, "big-1": 5 * GB},
        low_percent=100,
    )
    usage = {name: Amount(20, 20 * GB) for name in ("big-0", "big-1", "other")}
    found = {need.folder: need.amount.bytes for need in needs(limits, EMPTY, usage)}
    assert found == {"big-1": 15 * GB, "other": 10 * GB}


def test_what_goes_for_a_namespace_counts_for_the_shelf() -> None:
    limits = Limits(namespace_bytes_of={"a": 10}, shelf_bytes=25, low_percent=100)
    found = needs(limits, EMPTY, {"a": Amount(20, 20), "b": Amount(20, 20)})
    assert [(need.folder, need.amount.bytes) for need in found] == [("a", 10), (None, 5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"shelf_bytes": 0},
        {"namespace_bytes": -1},
        {"namespace_bytes_of": {"a": 0}},
        {"namespace_bytes_of": {"": 1}},
        {"volume_percent": 0},
        {"inode_percent": 100.1},
        {"low_percent": 0},
        {"keep_percent": -1},
        {"volume_percent": float("nan")},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


amounts = st.builds(Amount, st.integers(0, 10**7), st.integers(0, 10**15))
percents = st.floats(1, 100)


@given(
    usage=st.dictionaries(st.sampled_from("abc"), amounts, min_size=1),
    foreign=st.integers(0, 10**15),
    free=st.integers(0, 10**15),
    shelf=st.none() | st.integers(1, 10**15),
    percent=st.none() | percents,
    inodes=st.none() | percents,
    low=percents,
    keep=st.floats(0, 100),
    evicting=st.booleans(),
)
def test_never_less_than_needed_nor_more_than_allowed(
    usage: dict[str, Amount],
    foreign: int,
    free: int,
    shelf: int | None,
    percent: float | None,
    inodes: float | None,
    low: float,
    keep: float,
    evicting: bool,
) -> None:
    limits = Limits(
        shelf_bytes=shelf,
        volume_percent=percent,
        inode_percent=inodes,
        low_percent=low,
        keep_percent=keep,
    )
    mine = sum(usage.values(), Amount())
    volume = Volume(
        mine.bytes + foreign, mine.bytes + foreign + free, mine.files + 7, mine.files + 7 + 10**6
    )
    [need] = needs(limits, volume, usage, evicting) or [Need(Amount(), "")]
    after = mine - need.amount
    assert after.files >= 0 and after.bytes >= 0
    # Enough: each limit is met, or what is missing is said.
    slack = 1e-6 * volume.total_bytes + 1
    if need.amount and shelf is not None and mine.bytes > shelf:
        assert after.bytes <= shelf * low / 100 + slack
    if percent is not None and volume.used_bytes > volume.total_bytes * percent / 100:
        mark = volume.total_bytes * percent / 100 * low / 100
        assert volume.used_bytes - need.amount.bytes - need.short.bytes <= mark + slack
    # Not too much: some limit asked for it.
    marks = [0.0]
    if shelf is not None:
        marks.append(mine.bytes - shelf * low / 100)
    if percent is not None:
        allowed = min(
            volume.used_bytes - volume.total_bytes * percent / 100 * low / 100,
            mine.bytes - volume.total_bytes * keep / 100,
        )
        marks.append(allowed)
    assert need.amount.bytes <= max(marks) + slack
    if not evicting and (shelf is None or mine.bytes <= shelf) and percent is inodes is None:
        assert not need.amount


@pytest.mark.parametrize(
    ("limits", "most_bytes"),
    [
        (Limits(shelf_bytes=100 * GB), 40 * GB),
        (Limits(namespace_bytes=50 * GB), 10 * GB),
        (Limits(namespace_bytes_of={"b": 30 * GB}), 10 * GB),
        (Limits(namespace_bytes_of={"c": 5 * GB}), 5 * GB),
    ],
    ids=["shelf", "namespaces", "one namespace", "one not known yet"],
)
def test_growth_up_to_the_nearest_limit_exceeds_none(limits: Limits, most_bytes: int) -> None:
    usage = {"a": Amount(40, 40 * GB), "b": Amount(20, 20 * GB)}
    assert not may_exceed(limits, usage, most_bytes)
    assert may_exceed(limits, usage, most_bytes + 1)


def test_without_limits_of_bytes_no_growth_exceeds_any() -> None:
    assert not may_exceed(Limits(volume_percent=50, inode_percent=50), {"a": Amount(1, GB)}, GB)
