"""The place is kept, whatever ends a scrub; the rate is kept, by a clock that does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk import tree
from kvshelf.disk.layout import SCRUB_CURSOR
from kvshelf.errors import ConfigError, NotAShelfError
from kvshelf.upkeep.scrub import cursor, scrubber
from kvshelf.upkeep.scrub.findings import Action, Kind
from kvshelf.upkeep.scrub.pace import Pace
from kvshelf.upkeep.scrub.scrubber import Scrubber
from kvshelf.upkeep.scrub.settings import ScrubSettings
from tests.upkeep.scrub.shelves import OTHER, chunks, everything, fill, found, scrubbed


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def verified(root: Path, **settings: Any) -> int:
    return scrubbed(root, **settings)[1].totals.files


def test_a_killed_scrub_goes_on_where_it_was(shelf: Path) -> None:
    fill(shelf, range(3), identity=OTHER)
    fill(shelf, range(3), rank=10)
    # It hangs before its sixth file, and keeps its place after each.
    code = (
        "import itertools, sys, time; from pathlib import Path;"
        "from kvshelf.upkeep.scrub import scrubber;"
        "from kvshelf.upkeep.scrub.settings import ScrubSettings;"
        "scrubber.CURSOR_SECONDS = 0; count = itertools.count(1); Verifier = scrubber.FileVerifier;"
        "check = Verifier.check;"
        "hang = lambda: (print('here', flush=True), time.sleep(60));"
        "Verifier.check = lambda *a, **k: (next(count) == 6 and hang(), check(*a, **k))[1];"
        "print(list(scrubber.Scrubber(Path(sys.argv[1]), ScrubSettings(0, 0)).run()))"
    )
    line = [sys.executable, "-c", code, str(shelf)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        process.kill()
    fifth = chunks(shelf)[4]
    value = json.loads((shelf / SCRUB_CURSOR).read_text())
    assert value == {"kvshelf": 1, "after": str(fifth.relative_to(shelf)), "passes": 0}
    assert verified(shelf) == len(chunks(shelf)) - 5 == 9
    assert verified(shelf) == 14  # the next pass
    value = json.loads((shelf / SCRUB_CURSOR).read_text())
    assert value == {"kvshelf": 1, "after": "", "passes": 2}
    assert [path.name for path in shelf.iterdir() if path.name.startswith(".")] == []


def test_every_place_is_one_to_go_on_from(shelf: Path) -> None:
    fill(shelf, range(3), identity=OTHER)
    fill(shelf, range(3), rank=10)
    paths = [str(path.relative_to(shelf)) for path in chunks(shelf)]
    descriptor = os.open(shelf, os.O_RDONLY)
    for number, path in enumerate(paths, 1):
        cursor.save(descriptor, cursor.Cursor(path, 7))
        (shelf / path).rename(shelf / "aside")  # evicted since
        assert verified(shelf) == len(paths) - number
        (shelf / "aside").rename(shelf / path)
        assert cursor.load(descriptor) == cursor.Cursor("", 8)
    os.close(descriptor)


def test_closing_the_findings_keeps_the_place(shelf: Path) -> None:
    for path in chunks(shelf)[2:4]:
        os.truncate(path, 5)
    third, fourth = (str(path.relative_to(shelf)) for path in chunks(shelf)[2:4])
    run = Scrubber(shelf, ScrubSettings(0, 0)).run()
    assert next(run).path == third
    run.close()
    findings, rest = scrubbed(shelf)
    assert [finding.path for finding in findings] == [fourth] and rest.totals.files == 5


def test_time_ends_a_scrub(shelf: Path) -> None:
    clock = Clock()
    settings = ScrubSettings(0, 1 / 60, minutes=3)
    run = Scrubber(shelf, settings, clock=clock, sleep=clock.sleep)
    assert list(run.run()) == [] and run.totals.files == 3 and not run.totals.finished
    assert verified(shelf) == 5


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"kvshelf": 2, "after": "", "passes": 0}',
        '{"kvshelf": 1, "after": "../../etc/passwd", "passes": 0}',
        '{"kvshelf": 1, "after": 7, "passes": 0}',
        '{"kvshelf": 1, "after": "", "passes": true}',
        '{"kvshelf": 1, "after": "", "passes": -1}',
    ],
)
def test_a_damaged_cursor_is_reported_and_begun_anew(shelf: Path, content: str) -> None:
    (shelf / SCRUB_CURSOR).write_text(content)
    findings, run = scrubbed(shelf)
    assert [(f.kind, f.path, f.action) for f in findings] == [
        (Kind.FOREIGN, SCRUB_CURSOR, Action.KEPT)
    ]
    assert run.totals.files == 8
    assert found(shelf) == []


def test_a_cursor_that_is_a_link_is_replaced_and_not_followed(shelf: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text('{"kvshelf": 1, "after": "", "passes": 0}')
    (shelf / SCRUB_CURSOR).symlink_to(outside)
    assert [kind for kind, _, _ in found(shelf)] == [Kind.FOREIGN, Kind.FOREIGN]
    assert json.loads(outside.read_text())["passes"] == 0
    assert not (shelf / SCRUB_CURSOR).is_symlink()


def test_from_start_and_dry_runs_begin_anew(shelf: Path) -> None:
    descriptor = os.open(shelf, os.O_RDONLY)
    place = cursor.Cursor(str(chunks(shelf)[4].relative_to(shelf)), 1)
    cursor.save(descriptor, place)
    assert verified(shelf, dry_run=True) == 8 and cursor.load(descriptor) == place
    assert verified(shelf, from_start=True) == 8
    os.close(descriptor)


def test_a_folder_of_very_many_names_is_read_in_parts(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "NAMES_MAX", 5)
    folder = chunks(shelf)[0].parent
    for number in range(23):
        (folder / f"{number:02}").touch()
    descriptor = os.open(folder, os.O_RDONLY)
    names = [entry.name for entry in tree.entries(descriptor)]
    assert names == sorted(path.name for path in folder.iterdir())
    assert [e.name for e in tree.entries(descriptor, "20")] == names[names.index("20") + 1 :]
    assert [e.name for e in tree.entries(descriptor, "20", inclusive=True)] == names[
        names.index("20") :
    ]
    os.close(descriptor)
    assert len(found(shelf)) == 23


def test_housekeeping_comes_again_during_a_long_pass(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = Clock(), []
    real = Scrubber._housekeep
    monkeypatch.setattr(
        Scrubber, "_housekeep", lambda self, *args: calls.append(clock.now) or real(self, *args)
    )
    run = Scrubber(shelf, ScrubSettings(0, 1 / 3600), clock=clock, sleep=clock.sleep)
    assert list(run.run()) == [] and run.totals.files == 8
    assert [round(now - 1000) // 3600 for now in calls] == [0, 6]
    assert scrubber.HOUSEKEEPING_SECONDS == 6 * 3600


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"megabytes_per_second": 0.01, "files_per_second": 0}, 8 * 16_384 / 1e4),
        ({"megabytes_per_second": 0, "files_per_second": 0.5}, 16.0),
        ({"megabytes_per_second": 0.1, "files_per_second": 5}, 1.6),
        ({"megabytes_per_second": 0.1, "files_per_second": 10}, 8 * 16_384 / 1e5),
        ({"megabytes_per_second": 0, "files_per_second": 0}, 0.0),
    ],
)
def test_the_rate_is_kept(shelf: Path, settings: dict[str, float], seconds: float) -> None:
    clock = Clock()
    run = Scrubber(shelf, ScrubSettings(**settings), clock=clock, sleep=clock.sleep)
    assert list(run.run()) == [] and run.totals.files == 8
    assert clock.now - 1000 == pytest.approx(seconds, rel=0.02)


def test_a_large_file_is_read_at_the_rate_too() -> None:
    clock, sleeps = Clock(), []
    pace = Pace(1e6, 0, clock=clock, sleep=lambda s: (sleeps.append(s), clock.sleep(s))[1])
    for _ in range(8):
        pace.spend(read_bytes=1 << 20)
    assert sleeps == pytest.approx([1.048576] * 8)


def test_of_idle_time_a_second_is_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1e6, 10, clock=clock, sleep=clock.sleep)
    clock.now += 3600
    pace.spend(read_bytes=2_000_000, files=1)
    assert clock.now == pytest.approx(4601)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("megabytes_per_second", -1.0),
        ("files_per_second", float("nan")),
        ("temp_hours", 0.5),
        ("unused_days", float("inf")),
        ("minutes", -0.1),
    ],
)
def test_bad_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        ScrubSettings(**{name: value})


@pytest.mark.parametrize("marker", [None, "{}", '{"kvshelf": 2}', "link"])
def test_a_directory_without_our_marker_is_refused(
    shelf: Path, marker: str | None, tmp_path: Path
) -> None:
    path = shelf / "kvshelf.json"
    path.rename(tmp_path / "kvshelf.json")
    if marker == "link":
        path.symlink_to(tmp_path / "kvshelf.json")
    elif marker is not None:
        path.write_text(marker)
    os.truncate(chunks(shelf)[0], 5)
    before = everything(shelf)
    with pytest.raises((NotAShelfError, FileNotFoundError)):
        found(shelf)
    assert everything(shelf) == before


def test_a_marker_that_goes_before_the_run_stops_it(shelf: Path) -> None:
    os.truncate(chunks(shelf)[0], 5)
    run = Scrubber(shelf, ScrubSettings(0, 0)).run()
    (shelf / "kvshelf.json").unlink()
    with pytest.raises(FileNotFoundError):
        next(run)
    assert len(chunks(shelf)) == 8
