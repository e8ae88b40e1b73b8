"""Every command and every Python block of every page is one that works as it is written."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy/README.md",
]
HISTORY = {"CHANGELOG.md"}  # it names commands of before
NO_VERBS = {"is", "removed"}  # of a log line, and of a file
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = {"bash", "sh", "console"}


def lines_of(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell block, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.count("'") % 2:  # a quoted text goes on over lines: no command of ours does
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&()<>"):
                yield words
                words = []
            else:
                words.append(word)


def ours(words: list[str]) -> list[str] | None:
    """Arguments of a kvshelf in these words, which may run it in a container."""
    if "kvshelf" not in words:
        return None
    at = words.index("kvshelf")
    return words[at + 1 :] if at == 0 or words[at - 1] in ("--", "exec") else None


def shell_blocks(page: Path) -> Iterator[str]:
    for kind, text in _BLOCK.findall(page.read_text("utf-8")):
        if kind in SHELL:
            yield text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_blocks_are_understood(page: Path) -> None:
    for block in shell_blocks(page):
        for words in lines_of(block):
            arguments = ours(words)
            if arguments and arguments[0] not in ("--version", "--print-completion"):
                parser().parse_args(arguments)  # ends the test if it cannot


def options_of(command: str) -> set[str]:
    [verbs] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return {name for action in verbs.choices[command]._actions for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_text_have_a_verb_and_options_that_exist(page: Path) -> None:
    if page.name in HISTORY:
        return
    text = _BLOCK.sub("", page.read_text("utf-8")).replace("\n", " ")
    for command, rest in re.findall(r"`kvshelf ([a-z]+)((?: [^`]*)?)`", text):
        known = set() if command in NO_VERBS else options_of(command)
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
            assert option in known, (command, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|^(?:    )?)make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\b((?:scripts|benchmarks|demo|tests)/[\w/-]+\.(?:py|sh))", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\b(benchmarks/results/[\w/-]+\.(?:json|png))", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_on_pages_compiles(page: Path) -> None:
    for kind, text in _BLOCK.findall(page.read_text("utf-8")):
        if kind == "python":
            compile(text, str(page), "exec")


def test_the_reader_of_blocks_finds_commands() -> None:
    block = "kvshelf ls /kv | head  # a comment\nkubectl exec p -- kvshelf top /kv \\\n  --once\n"
    found = [ours(words) for words in lines_of(block)]
    assert [each for each in found if each] == [["ls", "/kv"], ["top", "/kv", "--once"]]
    pages = {page for page in PAGES for block in shell_blocks(page) if "kvshelf " in block}
    assert len(pages) >= 10
