"""kvshelf doctor and bench as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvshelf.bench import Row
from kvshelf.cli.cmd_bench import print_rows
from kvshelf.cli.main import main
from kvshelf.disk.root import open_root
from tests.cli.usage import refused

QUICK = ["--quick"]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def by_check(report: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["severity"] for finding in report["findings"]}


def test_a_good_directory_ends_with_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = run_json(capsys, "doctor", str(tmp_path), "--size", "32MB")
    checks = by_check(report)
    assert checks["publication"] == "fine" and checks["access times"] == "fine"
    extra = report["settings"]["kv_connector_extra_config"]
    assert extra["shared_storage_path"] == str(tmp_path)
    assert {row["operation"] for row in report["rows"]} == {"store", "cold-load", "lookup"}
    assert not list(tmp_path.iterdir())


def test_a_relative_root_is_made_absolute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kv").mkdir()
    _, report = run_json(capsys, "doctor", "kv", *QUICK)
    assert "problem" not in by_check(report).values() and report["root"] == "kv"
    extra = report["settings"]["kv_connector_extra_config"]
    assert extra["shared_storage_path"] == str(tmp_path / "kv")


def test_text_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", str(tmp_path), *QUICK])
    out = capsys.readouterr().out
    assert "Settings for --kv-transfer-config:" in out and "publication" in out


def test_a_directory_of_others_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("mine")
    before = tmp_path.stat().st_mtime_ns
    status, report = run_json(capsys, "doctor", str(tmp_path), *QUICK)
    assert status == 1 and report["settings"] is None
    assert tmp_path.stat().st_mtime_ns == before
    main(["doctor", str(tmp_path), *QUICK])
    assert "cannot work here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "severity"),
    [
        ('{"shared_storage_path": "/x"}', "fine"),
        ('{"kv_connector_extra_config": {"shared_storage_path": "/x"}}', "fine"),
        ('{"shared_storage_path": "/x", "threads": 1}', "problem"),
        ("[]", "problem"),
        ("{", "problem"),
        ("@/absent", "problem"),
    ],
)
def test_settings_are_checked(
    given: str, severity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = run_json(capsys, "doctor", str(tmp_path), *QUICK, "--settings", given)
    assert by_check(report)["settings"] == severity


def test_settings_may_be_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"shared_storage_path": "/x"}')
    root = tmp_path / "shelf"
    root.mkdir()
    _, report = run_json(capsys, "doctor", str(root), *QUICK, "--settings", f"@{file}")
    assert by_check(report)["settings"] == "fine"


def test_a_peer_that_does_not_come_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = ["--peer", "--wait", "0.1"]
    _, report = run_json(capsys, "doctor", str(tmp_path), *QUICK, *peer)
    assert by_check(report)["peers"] == "note"  # no shelf yet
    open_root(tmp_path)
    _, report = run_json(capsys, "doctor", str(tmp_path), *QUICK, *peer)
    assert by_check(report)["peers"] == "note"
    assert [path.name for path in tmp_path.iterdir()] == ["kvshelf.json"]


def test_bench_measures_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "8MB", "--chunk-size", "2MB", "--threads", "1,2", "--rounds", "2"]
    status, report = run_json(capsys, "bench", str(tmp_path), *small)
    assert status == 0 and not list(tmp_path.iterdir())
    rows = {(row["operation"], row["threads"]): row for row in report["rows"]}
    assert len(rows) == 10
    for row in rows.values():
        assert row["engine"] > 0 and (row["plain"] is None) == (row["operation"] == "mixed")
    assert rows["lookup", 1]["more"]["miss_ms"] > 0
    assert main(["bench", str(tmp_path), *small, "--only", "cold-load"]) == 0
    out = capsys.readouterr().out
    assert "tokens/s here" in out and "\nstore" not in out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--threads", "0"],
        ["--threads", "1,x"],
        ["--only", "write"],
        ["--size", "1MB"],
        ["--size", "20MB", "--chunk-size", "16MB"],
        ["--piece-size", "65MiB"],
        ["--rounds", "0"],
        ["--size", "1000000MB"],
    ],
)
def test_bench_refuses_nonsense(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrong[0] in refused(["bench", str(tmp_path), *wrong], capsys)
    assert not list(tmp_path.iterdir())


def test_a_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([Row("load", 12, "GB/s", 51.5, 44.0, 1.17), Row("lookup", 1, "keys/s", 650_000.0)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["load", "12", "51.5", "GB/s", "44", "1.17"]
    assert "650,000 keys/s" in lines[2]


def test_bench_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "rates.png"
    root = tmp_path / "shelf"
    root.mkdir()
    small = ["--size", "4MB", "--chunk-size", "2MB", "--threads", "1", "--rounds", "1"]
    status = main(["bench", str(root), *small, "--plot", str(picture)])
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        assert status == 2 and "kvshelf[plot]" in capsys.readouterr().err
    else:
        assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")
