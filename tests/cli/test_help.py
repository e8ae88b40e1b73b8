"""Wrong usage says what was meant; ``kvshelf help``; completion by shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvshelf.cli.main import COMMANDS, main, parser
from tests.cli.usage import refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["evct", "/kv"], "no command 'evct'; did you mean evict? Commands: doctor, bench, ls"),
        (["nothing"], "no command 'nothing'. Commands: doctor, bench, ls"),
        (["--versoin"], "no option '--versoin' before the command; did you mean --version?"),
        (["--json", "ls", "/kv"], "no option '--json' before the command"),
        (["doctor", "/kv", "--quik"], "unrecognized arguments: --quik; did you mean --quick?"),
        (["scrub", "/kv", "--unused-fro=3d"], "did you mean --unused-for?"),
        (["diff", "/kv", "A", "B", "C"], "unrecognized arguments: C"),
        (["help", "evct"], "no command 'evct'; did you mean evict?"),
    ],
)
def test_wrong_usage_says_what_was_meant(
    line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(line, capsys)


@pytest.mark.parametrize("line", [["scrub", "/kv", "--fro-start"], ["scrub"]])
def test_an_error_shows_the_usage_of_its_command(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(line)
    assert capsys.readouterr().err.startswith("usage: kvshelf scrub [-h]")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_a_command_too(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    words = [] if command is None else [command]
    said = []
    for line in (["help", *words], [*words, "--help"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(line)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "exit status:" in said[0]


def test_what_is_right_is_parsed_as_before() -> None:
    options = parser().parse_args(["ls", "/kv", "--sizes"])
    assert (options.command, options.root, options.sizes) == ("ls", "/kv", True)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_gets_a_script_that_it_takes(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert "--unused-for" in script and all(name in script for name in COMMANDS)
    if shutil.which(shell):
        path = tmp_path / "completion"
        path.write_text(script)
        subprocess.run([shell, "-n", str(path)], check=True, timeout=30)


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    said = refused(["--print-completion", "bash"], capsys)
    assert "pip install 'kvshelf[completion]'" in said


def test_bash_completes_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(
        capsys.readouterr().out
        + "\nCOMP_WORDS=(kvshelf evict --sh); COMP_CWORD=2; _shtab_kvshelf\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", str(script)], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["--shelf-limit"]
