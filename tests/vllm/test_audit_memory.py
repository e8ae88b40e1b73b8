"""An audit whose memory or thread is not to be had: one error at the start, with the setting."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402

from kvshelf.errors import ConfigError, ResourceError  # noqa: E402
from kvshelf.vllm.worker import auditor  # noqa: E402


def an_auditor() -> auditor.Auditor:
    computed = SimpleNamespace(page_bytes=[[4096]], device=torch.device("cpu"))
    return auditor.Auditor(
        lambda groups, owner: cast(Any, None),
        cast(Any, computed),
        group_ids=[0],
        blocks_per_chunk=1,
        sections=[None],
        limits={},
        memory_bytes=3 << 20,
    )


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate"), RuntimeError("no memory")])
def test_memory_that_is_not_to_be_had_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(auditor, "host_bytes", refuse)
    with pytest.raises(ConfigError, match="audit_memory_mib=3: cannot be allocated"):
        an_auditor()


def test_without_a_thread_it_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceError, match="no thread can be made"):
        an_auditor()
