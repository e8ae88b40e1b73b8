"""A mount that is hung when a shelf is opened: one error, in time, and later it opens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvshelf import EngineConfig, Identity, Shelf
from kvshelf.cli import cmd_doctor, common
from kvshelf.cli.common import Exit
from kvshelf.cli.main import main
from kvshelf.errors import ConfigError
from tests.harness.engines import EngineFailedError, EngineProcess, engine_arguments

from .mount import FaultyMount, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
IDENTITY = Identity({"model": "m"})


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[FaultyMount]:
    made = FaultyMount(tmp_path / "m")
    yield made
    made.thaw()
    made.close()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
def test_a_hung_root_is_one_error_in_time(tmp_path: Path, mount: FaultyMount, is_new: bool) -> None:
    roots = [tmp_path / "good", mount.path / "bad"]
    if not is_new:
        Shelf(roots, IDENTITY).close()
    mount.freeze()
    begin = time.monotonic()
    with pytest.raises(ConfigError) as found:
        Shelf(roots, IDENTITY, config=EngineConfig(open_timeout_seconds=0.5))
    assert time.monotonic() - begin < 10
    assert found.value.setting == "shared_storage_path" and found.value.value == str(roots[1])
    mount.thaw()
    with Shelf(roots, IDENTITY) as shelf:
        assert shelf.lookup([]) == []


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_an_engine_on_a_hung_mount_says_so_and_ends(
    tmp_path: Path, mount: FaultyMount, tiny_model: Path
) -> None:
    shelf = mount.path / "shelf"
    arguments = engine_arguments(tiny_model, shelf, open_timeout_seconds=1.0)
    mount.freeze()
    engine = EngineProcess("hung", arguments, tmp_path / "engine.log")
    with pytest.raises(EngineFailedError):
        engine.launch().ready()
    said = (tmp_path / "engine.log").read_text()
    error = f"shared_storage_path='{shelf}': did not answer within open_timeout_seconds (1)"
    assert error in said


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["ls"], Exit.NO_SHELF),
        (["ls", "--identities"], Exit.NO_SHELF),
        (["diff", "a", "b"], Exit.NO_SHELF),
        (["scrub"], Exit.NO_SHELF),
        (["evict", "--once"], Exit.NO_SHELF),
        (["bench"], Exit.NO_SHELF),
        (["doctor"], Exit.FINDINGS),
        (["doctor", "--json"], Exit.FINDINGS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_on_a_hung_mount_says_so(
    mount: FaultyMount,
    command: list[str],
    status: Exit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (common, cmd_doctor):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    root = mount.path / "shelf"
    Shelf(root, IDENTITY).close()
    mount.freeze()
    name, *options = command
    assert main([name, str(root), *options]) == status
    said = "".join(capsys.readouterr())
    assert f"{root}: no answer within 0.3 s" in said
