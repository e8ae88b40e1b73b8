"""The documentation says what the code does: tables, the README's example, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from kvshelf.cli.main import parser
from kvshelf.config import Settings
from kvshelf.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "deploy/README.md"]
TABLES = [
    "dev/coverage.md",
    "dev/faults.md",
    "dev/field-cases.md",
    "explain/reliability.md",
    "howto/share-and-why-not.md",
    "reference/cli.md",
    "reference/metrics.md",
    "reference/python.md",
    "reference/settings.md",
]


@pytest.fixture
def make_docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import make_docs

    return make_docs


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_up_to_date(name: str, make_docs: ModuleType) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == make_docs.with_table(page, make_docs.TABLES[name]()), (
        f"docs/{name} is stale: python scripts/make_docs.py"
    )


def test_the_table_has_a_row_a_setting(make_docs: ModuleType) -> None:
    head, rule, *rows = make_docs.settings_table().splitlines()
    assert [row.split("`")[1] for row in rows] == [field.name for field in fields(Settings)]
    assert {row.count("|") for row in (head, rule, *rows)} == {5}


def test_the_table_has_a_row_a_metric(make_docs: ModuleType) -> None:
    head, rule, *rows = make_docs.metrics_table().splitlines()
    assert len(rows) == len(METRICS)
    assert {row.count("|") for row in (head, rule, *rows)} == {6}
    assert "| `kvshelf:lookups_total` | counter | keys | `result` |" in "\n".join(rows)
    assert "| `kvshelf:load_seconds` | histogram | seconds |  |" in "\n".join(rows)


def test_a_stale_page_is_noticed_and_written(
    tmp_path: Path,
    make_docs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in make_docs.TABLES:
        page = (DOCS / name).read_text(encoding="utf-8")
        stale = page.replace(make_docs.END, f"stale\n{make_docs.END}")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(stale, encoding="utf-8")
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    assert make_docs.main(["--check"]) == 1
    assert capsys.readouterr().out.count("is stale") == len(make_docs.TABLES)
    assert make_docs.main([]) == 0
    assert make_docs.main(["--check"]) == 0


@pytest.mark.parametrize("page", ["", "{begin}", "{end}{begin}", "{begin}{begin}{end}"])
def test_a_page_without_marks_is_refused(page: str, make_docs: ModuleType) -> None:
    with pytest.raises(ValueError, match="marks"):
        make_docs.with_table(page.format(begin=make_docs.BEGIN, end=make_docs.END), "table\n")


def python_block() -> str:
    [block] = re.findall(
        r"```python\n(.*?)```", (DOCS / "reference/python.md").read_text("utf-8"), re.DOTALL
    )
    return str(block)


def test_the_example_is_the_pages() -> None:
    docstring, _, code = (ROOT / "examples/quickstart.py").read_text("utf-8").partition("\n\n")
    assert docstring.startswith('"""') and code == python_block()


def test_the_pages_example_runs(tmp_path: Path) -> None:
    code = python_block().replace("/tmp/shelf", str(tmp_path / "shelf"))
    assert str(tmp_path) in code
    for _ in range(2):  # a second run finds the first one's chunk
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "True"
        assert "NOT_FOUND" not in done.stdout and "CORRUPT" not in done.stdout
    assert len(list((tmp_path / "shelf").rglob("*.kv"))) == 1


def test_configurations_in_the_documentation_are_accepted() -> None:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        found += re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        found += re.findall(r"--kv-transfer-config '(\{.*?\})'", text, re.DOTALL)
    assert len(found) >= 6
    for config in map(json.loads, found):
        settings = config.get("kv_connector_extra_config", config)
        assert Settings.from_mapping(settings, {}).shared_storage_path


def test_configurations_in_the_examples_are_accepted() -> None:
    compose = (ROOT / "examples/two-replicas.compose.yaml").read_text("utf-8")
    server = (ROOT / "examples/vllm_server.sh").read_text("utf-8").replace('\\"', '"')
    found = re.findall(r"--kv-transfer-config[= ]\"?(\{.*?\}\s*\})", compose + server, re.DOTALL)
    assert len(found) == 2
    for config in map(json.loads, found):
        assert config["kv_connector"] == "KvshelfConnector"
        settings = dict.fromkeys(config["kv_connector_extra_config"], "/kv")
        assert Settings.from_mapping(settings, {}).shared_storage_path == "/kv"


def test_the_example_of_a_service_runs_a_command_that_exists() -> None:
    service = (ROOT / "examples/kvshelf-evict.service").read_text("utf-8")
    [line] = re.findall(r"^ExecStart=\S+/kvshelf (.*)$", service, re.MULTILINE)
    options = parser().parse_args(line.split())
    assert options.command == "evict" and f"ReadWritePaths={options.root}\n" in service


def test_every_example_is_in_its_list() -> None:
    page = (ROOT / "examples/README.md").read_text("utf-8")
    there = {path.name for path in (ROOT / "examples").iterdir() if path.is_file()}
    assert there - {"README.md"} == set(re.findall(r"^\| `([\w.-]+)` \|", page, re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """As GitHub and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("folder", ["src", "native", "deploy", "scripts", "tests", "benchmarks"])
def test_pages_that_code_names_exist(folder: str) -> None:
    suffixes = {".py", ".h", ".cpp", ".yaml", ".md", ".env", ".tsv"}
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in suffixes and path.is_file():
            for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text("utf-8")):
                assert (ROOT / page).exists(), (path, page)


def test_the_site_has_every_page_once() -> None:
    named = re.findall(
        r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_links_that_leave_docs_lead_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import site_links

    text = "[a](../../deploy/README.md#b), [c](audit.md), [d](../layout.md)"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="howto/monitor.md"))
    without = site_links.on_page_markdown(text, page=page, config=SimpleNamespace(repo_url=None))
    assert without == "a (`deploy/README.md` in the repository), [c](audit.md), [d](../layout.md)"
    config = SimpleNamespace(repo_url="https://forge/x/")
    given = site_links.on_page_markdown(text, page=page, config=config)
    assert given.startswith("[a](https://forge/x/blob/main/deploy/README.md#b), [c](audit.md)")


def test_the_tests_that_the_page_on_sharing_names_exist() -> None:
    page = (DOCS / "howto/share-and-why-not.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", page))
    assert len(named) >= 10
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
    table = page.partition("| request | shares |")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) >= 20 and all("::test_" in row for row in rows)


@pytest.mark.parametrize(("letter", "last"), [("E", 24), ("S", 29)])
def test_every_case_from_the_field_names_its_test(letter: str, last: int) -> None:
    page = (DOCS / "dev/field-cases.md").read_text(encoding="utf-8")
    rows = re.findall(
        rf"^\| ({letter}\d+) \|.*`([a-z0-9_/]+\.py)::(test_[a-z0-9_]+)` \|$", page, re.MULTILINE
    )
    assert {case for case, _, _ in rows} == {f"{letter}{number}" for number in range(1, last + 1)}
    for _, path, test in rows:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)


def test_the_page_on_sharing_names_every_reason() -> None:
    code = (ROOT / "src/kvshelf/vllm/scheduler/requests.py").read_text(encoding="utf-8")
    reasons = set(re.findall(r'^[A-Z_]+ = "([a-z_]+)"$', code, re.MULTILINE))
    page = (DOCS / "howto/share-and-why-not.md").read_text(encoding="utf-8")
    assert len(reasons) >= 8
    assert all(f"`{reason}`" in page for reason in reasons)


def test_the_places_that_the_developers_page_names_exist() -> None:
    page = (DOCS / "dev/places.md").read_text(encoding="utf-8")
    stops = re.findall(r"^\d\. `([\w/.]+)` `(\w+)`: ", page, re.MULTILINE)
    assert len(stops) >= 20
    for path, name in stops:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"(?:def |class |::){name}\(?", text), (path, name)
    rooms = {line.split("|")[2] for line in page.splitlines() if re.match(r"\| \d \|", line)}
    named = {name.rstrip("/") for cell in rooms for name in re.findall(r"`([\w/.]+)`", cell)}
    package = ROOT / "src/kvshelf"
    there = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert there <= named and len(there) <= 12
    assert all((package / name).exists() for name in named)
