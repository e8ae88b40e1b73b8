"""``kvshelf ls --identities`` and ``diff``, in process and as users run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvshelf.cli import common
from kvshelf.cli.main import main
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import open_namespace, open_root

FIELDS: dict[str, Any] = {
    "model": "org/model",
    "engine": "vllm-0.32",
    "dtype": "bfloat16",
    "groups": [{"page_bytes": 4096, "window": None}],
}
LEFT = Identity(FIELDS)
RIGHT = Identity({**FIELDS, "dtype": "float16", "groups": [{"page_bytes": 8192}]})
OTHER = Identity({**FIELDS, "model": "other"})


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = open_root(tmp_path / "shelf")
    for identity in (LEFT, RIGHT, OTHER):
        open_namespace(root, identity)
    return root


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    line = [sys.executable, "-m", "kvshelf.cli", *map(str, arguments)]
    return subprocess.run(
        line, check=False, capture_output=True, encoding="utf-8", timeout=60, **options
    )


def test_the_namespaces_are_listed(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--identities", str(shelf)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["FOLDER", "MODEL", "ENGINE", "DIGEST"]
    assert [row.split() for row in rows] == sorted(
        [i.folder, i.model, "vllm-0.32", i.digest.hex()[:12]] for i in (LEFT, RIGHT, OTHER)
    )


def test_an_empty_shelf_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_root(tmp_path)
    assert main(["ls", "--identities", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no namespaces in {tmp_path}\n"
    assert main(["ls", "--identities", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "document": "kvshelf.identities/1",
        "root": str(tmp_path),
        "namespaces": [],
    }


def test_json_is_complete(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--identities", "--json", str(shelf)]) == 0
    listed = json.loads(capsys.readouterr().out)["namespaces"]
    by_folder = {entry["folder"]: entry for entry in listed}
    assert by_folder[LEFT.folder] == {
        "folder": LEFT.folder,
        "model": "org/model",
        "engine": "vllm-0.32",
        "digest": LEFT.digest.hex(),
        "identity": FIELDS,
        "problem": None,
    }


def test_a_damaged_namespace_is_a_finding(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / LEFT.folder / "namespace.json").write_text("{")
    assert main(["ls", "--identities", str(shelf)]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^{LEFT.folder}\s+\(damaged\)$", out, re.MULTILINE)
    assert f"finding: {LEFT.folder}/namespace.json: " in out
    assert RIGHT.folder in out

    assert main(["ls", "--identities", str(shelf), "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)["namespaces"]
    [damaged] = [entry for entry in listed if entry["problem"]]
    assert damaged["folder"] == LEFT.folder and damaged["identity"] is None

    assert main(["diff", str(shelf), LEFT.folder, OTHER.folder]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and LEFT.folder in captured.err


def test_a_copied_folder_is_a_finding(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / LEFT.folder).rename(shelf / "copy-000000000000")
    assert main(["ls", "--identities", str(shelf)]) == 1
    assert f"it is of the folder {LEFT.folder}" in capsys.readouterr().out
    assert main(["diff", str(shelf), "copy", OTHER.folder]) == 1
    captured = capsys.readouterr()
    assert 'model: "org/model" | "other"' in captured.out and LEFT.folder in captured.err


EXPECTED = """\
dtype: "bfloat16" | "float16"
groups.0.page_bytes: 4096 | 8192
groups.0.window: null | (absent)
    KV cache groups: layers, heads, page sizes -> the same model and parallel sizes
"""


def test_differences_are_one_a_line(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(shelf), LEFT.folder, RIGHT.folder]) == 1
    assert capsys.readouterr().out == EXPECTED


def test_why_a_field_keeps_two_apart(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiered = Identity({**LEFT.fields, "tier": {"layout": "replicated", "row_bytes": 4096}})
    open_namespace(shelf, tiered)
    names = [LEFT.folder, tiered.folder]
    assert main(["diff", str(shelf), *names]) == 1
    line, why = capsys.readouterr().out.splitlines()
    assert line.startswith("tier: (absent) | ") and "a tier keeps rows" in why
    assert main(["diff", str(shelf), "--json", *names]) == 1
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert difference["field"] == "tier" and difference["meaning"] in why


def test_differences_as_json(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(shelf), "--json", LEFT.folder, RIGHT.folder]) == 1
    groups = {
        "meaning": "KV cache groups: layers, heads, page sizes",
        "remedy": "the same model and parallel sizes",
    }
    assert json.loads(capsys.readouterr().out) == {
        "document": "kvshelf.diff/1",
        "root": str(shelf),
        "left": LEFT.folder,
        "right": RIGHT.folder,
        "differences": [
            {
                "field": "dtype",
                "left": "bfloat16",
                "right": "float16",
                "meaning": "",
                "remedy": "",
            },
            {"field": "groups.0.page_bytes", "left": 4096, "right": 8192, **groups},
            {"field": "groups.0.window", "left": None, **groups},
        ],
    }


def test_equal_namespaces_have_no_differences(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(shelf), LEFT.folder, LEFT.folder]) == 0
    assert capsys.readouterr().out == "equal in every field: they share\n"
    line = ["diff", str(shelf), "--json", LEFT.folder, LEFT.folder]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


@pytest.mark.parametrize(
    "name",
    [
        LEFT.folder,
        f"{LEFT.folder}/",
        LEFT.folder[:-9],
        LEFT.digest.hex(),
        LEFT.digest.hex()[:12],
        LEFT.digest.hex()[:6].upper(),
    ],
)
def test_names_may_be_shortened(shelf: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(shelf), "--json", name, "other"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["left"], found["right"]) == (LEFT.folder, OTHER.folder)


def test_a_whole_name_wins_over_a_prefix(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / LEFT.folder).rename(shelf / "org")
    assert main(["diff", str(shelf), "--json", "org", "org_"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["left"], found["right"]) == ("org", RIGHT.folder)


def test_an_ambiguous_name_lists_its_matches(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(shelf), "org_", "other"]) == 2
    error = capsys.readouterr().err
    assert "'org_'" in error and LEFT.folder in error and RIGHT.folder in error
    assert OTHER.folder not in error


def test_an_unknown_name_lists_what_there_is(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(shelf), "other", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "'nothing'" in error
    assert all(identity.folder in error for identity in (LEFT, RIGHT, OTHER))
    empty = open_root(tmp_path / "empty")
    assert main(["diff", str(empty), "a", "b"]) == 2
    assert "has none" in capsys.readouterr().err


def test_why_two_do_not_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = open_root(tmp_path)
    for name in ("a", "b"):
        open_namespace(root, Identity({"model": name, "salt": name, "hash": {"seed": name}}))
    assert main(["diff", str(root), "a-", "b-", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["differences"]
    assert [each["field"] for each in found] == ["hash.seed", "model", "salt"]
    assert "none on both" in found[0]["remedy"]  # kvshelf chooses one where none is set
    assert main(["diff", str(root), "a-", "b-"]) == 1
    assert "identity_salt" in capsys.readouterr().out
    assert main(["diff", str(root / "absent"), "a", "b"]) == 10


def test_a_long_list_is_cut_in_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = open_root(tmp_path)
    for i in range(30):
        open_namespace(root, Identity({"model": f"m{i:02}", "text": "x" * 500 + str(i)}))
    assert main(["diff", str(root), "zz", "zz"]) == 2
    assert "... and 10 more" in capsys.readouterr().err
    assert main(["diff", str(root), "m00", "m01"]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) < 350


def test_no_shelf_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    later = tmp_path / "later"
    later.mkdir()
    (later / "kvshelf.json").write_text('{"kvshelf": 9}')
    cases = {
        tmp_path / "absent": "is no directory",
        file: "is no directory",
        tmp_path: "has no kvshelf.json",
        later: "says version 9",
    }
    for path, complaint in cases.items():
        assert main(["ls", "--identities", str(path)]) == 10
        captured = capsys.readouterr()
        assert captured.out == "" and complaint in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "later"]  # nothing made


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_root(tmp_path)
    for name in ("a\x1b[2J\n\udcff", "b"):
        open_namespace(root, Identity({"model": name}))
    assert main(["ls", "--identities", str(root)]) == 0
    out = capsys.readouterr().out
    assert r"a\x1b[2J\n\udcff" in out and out.count("\n") == 3
    assert main(["diff", str(root), "a", "b"]) == 1
    assert "\x1b" not in capsys.readouterr().out


# --- in a process of its own


def test_the_command_as_users_run_it(shelf: Path) -> None:
    done = command("diff", shelf, LEFT.folder, RIGHT.folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, EXPECTED, "")
    script = Path(sys.executable).with_name("kvshelf")
    if script.exists():
        line = [script, "diff", shelf, "other", "other"]
        assert subprocess.run(line, check=False, capture_output=True).returncode == 0


def test_a_relative_root_is_fine(shelf: Path) -> None:
    assert command("ls", "--identities", shelf.name, cwd=shelf.parent).returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["nothing"],
        ["ls"],
        ["diff", "/x", "a"],
        ["ls", "/x", "--sizes", "--identities"],
        ["--json"],
    ],
)
def test_wrong_usage_is_2(line: list[str]) -> None:
    done = command(*line)
    assert done.returncode == 2 and "usage: kvshelf" in done.stderr and done.stdout == ""


def test_help_says_the_exit_statuses() -> None:
    for line in (["--help"], ["ls", "--help"]):
        done = command(*line)
        assert done.returncode == 0
        for text in ("0   fine", "1   differences or findings", "2   wrong usage", "10  no such"):
            assert text in done.stdout
    assert "--json" in done.stdout


def test_the_version_is_the_packages() -> None:
    done = command("--version")
    assert done.returncode == 0 and re.fullmatch(r"kvshelf \d+\.\d+\.\d+\S*\n", done.stdout)


def test_a_locale_without_unicode_is_no_reason_to_fail(tmp_path: Path) -> None:
    open_namespace(open_root(tmp_path), Identity({"model": "modèle-模型"}))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("ls", "--identities", tmp_path, env=environment)
    assert done.returncode == 0 and done.stderr == "" and r"\xe8" in done.stdout


def test_a_closed_pipe_ends_quietly(shelf: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "kvshelf.cli", "ls", "--identities", str(shelf)]
    done = subprocess.run(line, check=False, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_ends_quietly(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(root: Path) -> list[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        return []

    monkeypatch.setattr(common, "list_namespaces", interrupted)
    # A shell's background job is started with SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["ls", "--identities", str(shelf)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
