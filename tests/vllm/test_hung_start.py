"""The scheduler's part of an engine whose root hangs at start."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from kvshelf import opening  # noqa: E402
from kvshelf.errors import ConfigError  # noqa: E402
from kvshelf.vllm import spec as spec_module  # noqa: E402
from kvshelf.vllm.spec import SharedStorageOffloadingSpec  # noqa: E402

from .jobs import given_identity, tier_config  # noqa: E402


def test_no_call_on_a_root_is_made_before_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Path] = []
    monkeypatch.setattr(spec_module, "quick_line", lambda root: looked_at.append(root) or "")
    settings = {"shared_storage_path": str(tmp_path / "shelf"), "open_timeout_seconds": 0.2}
    groups = tier_config().groups[:1]
    spec = SharedStorageOffloadingSpec(
        tier_config(extra_config=given_identity() | settings, groups=groups)
    )
    answers = threading.Event()

    def hang(path: Path, **_: Any) -> Path:
        answers.wait(60)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(opening, "open_root", hang)
        with pytest.raises(ConfigError, match=r"did not answer within open_timeout_seconds"):
            spec.get_manager()
        assert not looked_at
        answers.set()
    manager = spec.get_manager()
    assert looked_at == [tmp_path / "shelf"]
    manager.shutdown()
