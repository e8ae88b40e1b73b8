"""Old names of commands and options: they work for one release, and say the new name on stderr."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvshelf.cli.main import main, parser
from kvshelf.cli.old import renamed
from kvshelf.disk.root import open_root

VERBS = [
    ("du /s --json", "ls --sizes /s --json"),
    ("namespaces /s", "ls --identities /s"),
    ("namespaces /s --diff a b --json", "diff /s --json a b"),
    ("namespaces --diff a b /s", "diff /s a b"),
    ("doctor /s --why a b", "diff /s a b"),
]
CASES = [
    ("bench /s --size-mb 8", "bench /s --size=8MB"),
    ("bench /s --chunk-mb=2 --piece-mib 4", "bench /s --chunk-size=2MB --piece-size=4MiB"),
    ("doctor /s --size-mb 32 --wait-seconds 1", "doctor /s --size=32MB --wait=1s"),
    ("evict /s --rate 1e6 --interval 0.5", "evict /s --max-files-per-second=1e6 --every=0.5s"),
    ("evict /s --lease-seconds 9 --settle-seconds 0", "evict /s --lease=9s --settle=0s"),
    ("ls --seconds 0 /s", "ls --for=0s /s"),
    ("plan t --capacity-gb 1,2.5", "plan t --capacity=1GB,2.5GB"),
    (
        "plan t --load-gbps 3 --duration-seconds 60",
        "plan t --load-bytes-per-second=3GB --duration=60s",
    ),
    ("plan t --touch-interval-seconds 600", "plan t --touch-interval=600s"),
    ("scrub /s --megabytes-per-second 32", "scrub /s --max-bytes-per-second=32MB"),
    ("scrub /s --files-per-second 0.5", "scrub /s --max-files-per-second=0.5"),
    ("scrub /s --temp-hours 24 --unused-days 30", "scrub /s --temp-age=24h --unused-for=30d"),
    ("scrub /s --minutes 5", "scrub /s --for=5m"),
    ("scrub /s --every-hours 168", "scrub /s --every=168h"),
    ("top /s --seconds 2", "top /s --every=2s"),
]


@pytest.mark.parametrize(("old", "new"), CASES)
def test_an_old_option_is_read_and_its_new_name_said(old: str, new: str) -> None:
    words, said = renamed(old.split())
    assert words == new.split()
    assert len(said) == len(set(new.split()) - set(old.split()))
    assert all(line.partition(": write ")[2] in words for line in said)
    parser().parse_args(words)  # the new name exists


@pytest.mark.parametrize(("old", "new"), VERBS)
def test_an_old_command_is_read_and_its_new_name_said(old: str, new: str) -> None:
    words, [said] = renamed(old.split())
    assert words == new.split()
    assert said.partition(": write kvshelf ")[2].split()[0] == words[0]
    parser().parse_args(words)


def test_an_old_command_may_have_an_old_option() -> None:
    words, said = renamed(["du", "/s", "--seconds", "3"])
    assert words == ["ls", "--sizes", "/s", "--for=3s"] and len(said) == 2
    assert renamed(["namespaces", "/s", "--diff", "a"])[0] == ["diff", "/s", "a"]


def test_todays_words_stay_as_they_are() -> None:
    for line in ([], ["--version"], ["ls", "/s", "--for", "2s"], ["evict", "/s", "--", "--rate"]):
        assert renamed(line) == (line, [])
    assert renamed(["evict", "--rate"]) == (["evict", "--rate"], [])  # argparse says what is wrong


def test_help_has_no_old_name(capsys: pytest.CaptureFixture[str]) -> None:
    for command in {new.split()[0] for _, new in VERBS + CASES}:
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
    shown = capsys.readouterr().out
    assert "--every DURATION" in shown
    words = {word.partition("=")[0] for old, _ in CASES for word in old.split()}
    assert not [word for word in words if word[:2] == "--" and re.search(rf"{word}\b", shown)]


def test_what_a_user_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(open_root(tmp_path / "shelf"))
    assert main(["ls", root, "--seconds", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == "kvshelf: --seconds is an old name: write --for=0s\n" and "no namespaces" in out
    assert main(["namespaces", root, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "kvshelf: namespaces is an old name: write kvshelf ls --identities\n"
    assert json.loads(out)["namespaces"] == []
