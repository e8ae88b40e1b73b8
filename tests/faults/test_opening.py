"""A mount that is hung when a shelf is opened: one error, in time, and later it opens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import EngineFailedError, EngineProcess, engine_arguments
from kvshelf import EngineConfig, Identity, Shelf
from kvshelf.errors import ConfigError

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
