"""What a release needs: its files name things that exist, and the pages can be read."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def prose(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import prose

    return prose


def test_one_source_of_the_version() -> None:
    assert version("kvshelf") == PROJECT["version"]
    code = [*(ROOT / "src").rglob("*.py"), *(ROOT / "native").rglob("*.h"), ROOT / "CMakeLists.txt"]
    assert not [p for p in code if f'"{PROJECT["version"]}"' in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / ".github").rglob("*.yml")),
        ROOT / ".pre-commit-config.yaml",
        ROOT / ".devcontainer/devcontainer.json",
        ROOT / "CONTRIBUTING.md",
        ROOT / "README.md",
    ],
    ids=lambda path: path.name,
)
def test_every_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"(?m)(?:run: |`|: \"|^)make ([a-z][a-z-]+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for script in re.findall(r"\b((?:scripts|benchmarks|\.ci)/[\w/.-]*\w)", text):
        assert (ROOT / script).exists(), script


def test_a_sentence_is_what_a_reader_takes_for_one(prose: ModuleType) -> None:
    page = (
        "# Title\n\nOne `a.b` here. Two [of a](link.md) kind:\n\n- three words here\n- an item\n\n"
    )
    page += "```\nno sentence here.\n```\n\n| no | table |\n\nFour, 0.26 to 0.33, is one."
    expected = ["One `a.b` here.", "Two of a kind:", "three words here", "an item"]
    assert list(prose.sentences(page)) == [*expected, "Four, 0.26 to 0.33, is one."]


def test_words_are_what_a_person_wrote_for_a_reader(prose: ModuleType) -> None:
    page = "Three words here.\n\n```bash\nnot this\n```\n\n| and | two |\n|---|---|\n"
    page += "<!-- made by a script -->\n| no | row |\n<!-- end -->\n"
    assert prose.words(page) == 5


@pytest.mark.parametrize(
    ("limits", "status"),
    [([], 0), (["--long", "35"], 1), (["--long", "36"], 0), (["--mean", "18.9"], 1)],
)
def test_what_is_too_long_is_refused_and_named(
    limits: list[str],
    status: int,
    prose: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"A{' word' * 35}.\n\nTwo words.\n")
    monkeypatch.setattr("sys.argv", ["prose.py", *limits, str(page)])
    assert prose.main() == status
    said = capsys.readouterr().out
    assert ("page.md: 36 words: A word" in said) == (limits == ["--long", "35"])
    assert "19.0 words a sentence, longest 36" in said


@pytest.mark.parametrize("name", ["README.md", "docs/reference/python.md", "SECURITY.md"])
def test_no_sentence_is_too_long(name: str, prose: ModuleType) -> None:
    lengths = [len(each.split()) for each in prose.sentences((ROOT / name).read_text("utf-8"))]
    assert max(lengths) <= 35 and sum(lengths) <= 18 * len(lengths)


def test_the_newcomer_finds_the_commands_that_it_follows() -> None:
    """scripts/newcomer.sh takes minutes; this holds that the pages still have its sections."""
    script = (ROOT / "scripts/newcomer.sh").read_text("utf-8")
    for page, heading in re.findall(r'commands ([\w./-]+) "([^"]+)"', script):
        section = (ROOT / page).read_text("utf-8").partition(f"\n## {heading}")[2]
        assert "```bash\n" in section.partition("\n## ")[0], (page, heading)
    assert script.count("commands ") >= 4
