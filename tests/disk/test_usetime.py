"""What a chunk file's three times say about its last use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvshelf.core import native
from kvshelf.disk.usetime import REUSE_NS, UseTime, marked, use_of

SECOND = 10**9
DAY = 86_400 * SECOND
NOW = 1_790_000_000 * SECOND
# A touch at NOW of a chunk that was used three milliseconds before.
TOUCHED = marked(NOW - 3_000_000, reused=False)
AGAIN = marked(NOW - 3_000_000, reused=True)


def test_a_touch_counts_whoever_reads_the_file() -> None:
    for reader in (TOUCHED, NOW, NOW + 1, NOW + SECOND // 2, NOW + 400 * DAY):
        assert use_of(reader, TOUCHED, NOW) == UseTime(TOUCHED, False)
        assert use_of(reader, AGAIN, NOW) == UseTime(AGAIN, True)


def test_a_touch_of_an_older_kvshelf_counts() -> None:
    later = NOW + 3600 * SECOND
    assert use_of(later - 5_000_000, TOUCHED, later) == UseTime(later - 5_000_000, True)


def test_a_change_of_mode_or_a_link_after_a_reader_is_no_use() -> None:
    """chown -R, or a backup by hard links, an hour after a virus scanner."""
    scanned = NOW + DAY
    assert use_of(scanned, TOUCHED, scanned + 3600 * SECOND) == UseTime(TOUCHED, False)


def test_times_that_an_older_kvshelf_left_count_until_somebody_reads() -> None:
    stored, used = NOW - DAY, NOW - 5_000_000
    assert use_of(used, stored, NOW) == UseTime(used, True)
    assert use_of(stored - 7_000_000, stored, stored) == UseTime(stored - 7_000_000, False)
    assert use_of(NOW + 3600 * SECOND, stored, NOW) == UseTime(stored, False)


def test_no_use_is_ahead_of_the_change_time() -> None:
    for ahead in (SECOND, 3600 * SECOND, DAY, 400 * 365 * DAY):
        assert use_of(NOW + ahead, marked(NOW + ahead, reused=False), NOW).ns == NOW
        assert use_of(NOW + ahead, marked(NOW + ahead, reused=True), NOW) == UseTime(NOW, True)
        assert use_of(NOW + ahead, NOW - DAY, NOW).ns == NOW - DAY  # of an older kvshelf


def test_times_of_whole_seconds_are_those_of_a_touch() -> None:
    touched = NOW - 40 * SECOND  # chunk 40 of a prompt
    for reader in (touched, NOW, NOW + SECOND, NOW + DAY):
        assert use_of(reader, touched, NOW) == UseTime(touched, False)


def test_without_a_change_time_the_others_count() -> None:
    assert use_of(TOUCHED, TOUCHED, 0) == UseTime(TOUCHED, False)


def test_times_before_1970_are_times() -> None:
    assert use_of(-DAY, -DAY, NOW) == UseTime(-DAY, False)
    assert use_of(0, 0, NOW) == UseTime(0, False)


# Of any time, and of times so near to each other that it matters which comes first.
TIMES = st.integers(-(2**60), 2**62) | st.integers(NOW - DAY, NOW + DAY)
NEAR = st.integers(NOW - 100 * SECOND, NOW) | st.integers(0, 100).map(lambda s: NOW - s * SECOND)


@given(*[TIMES | NEAR] * 3, st.booleans())
def test_the_native_core_says_the_same(
    accessed: int, modified: int, changed: int, mark: bool
) -> None:
    if mark:
        modified = marked(modified, reused=changed % 2 == 0)
    assert native.last_use(accessed, modified, changed) == use_of(accessed, modified, changed)


def test_a_mark_keeps_the_order_of_milliseconds() -> None:
    for reused in (False, True):
        times = [marked(NOW - i * 1_000_000 + 500_000, reused=reused) for i in range(3000)]
        assert times == sorted(times, reverse=True) and len(set(times)) == 3000
        assert abs(times[0] - NOW) < REUSE_NS


def test_a_touch_of_this_moment_keeps_its_place() -> None:
    """A kernel's ticks, by which change times go, are 1 to 10 ms long: some chunks are ahead."""
    times = [marked(NOW - i * 1_000_000 + 9_500_000, reused=False) for i in range(10)]
    assert [use_of(each, each, NOW).ns for each in times] == times
