"""Starts SGLang engines on a CPU; the rest of the harness is ``engines.py``'s.

SGLang lies in a directory of its own, ``SGLANG_SITE`` (``make test-sglang`` sets it), for
it wants other versions of some packages than vLLM; what it shares with vLLM comes from the
environment of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.harness.engines import REPOSITORY, Answer, EngineProcess

STUBS = REPOSITORY / "tests/harness/sglang_stubs"
PAGE_TOKENS = 16


def sglang_site() -> Path:
    """Where SGLang is installed for the tests."""
    return Path(os.environ.get("SGLANG_SITE", REPOSITORY / "build/sglang"))


def why_no_sglang() -> str | None:
    """The reason why no SGLang engine can run here, or None."""
    if not (sglang_site() / "sglang").is_dir():
        return f"SGLang is not installed in {sglang_site()}: make test-sglang"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: make setup"
    return None


def sglang_environment(**more: str) -> dict[str, str]:
    """The environment of an engine on a small machine without GPU and network."""
    path = [str(STUBS), str(sglang_site()), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **more,
    }


def storage_config(shelf: Path, **extra: object) -> dict[str, object]:
    """``hicache_storage_backend_extra_config`` of an engine with its shelf at ``shelf``."""
    return {
        "backend_name": "kvshelf",
        "module_path": "kvshelf.sglang",
        "class_name": "KvshelfStorage",
        "interface_v1": 1,
        "prefetch_threshold": PAGE_TOKENS,
        "shared_storage_path": str(shelf),
        **extra,
    }


def sglang_arguments(
    model: Path, backend: str | None, config: dict[str, object] | None = None
) -> dict[str, object]:
    """Keyword arguments of ``sglang.Engine``; without ``backend`` an engine without HiCache."""
    arguments: dict[str, object] = {
        "model_path": str(model),
        "device": "cpu",
        "skip_tokenizer_init": True,
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "dtype": "float32",
        "page_size": PAGE_TOKENS,
        "max_total_tokens": 4096,
        "mem_fraction_static": 0.1,
        "random_seed": 0,
        "log_level": "info",
    }
    if backend is not None:
        arguments |= {
            "enable_hierarchical_cache": True,
            "hicache_ratio": 2.0,
            "hicache_io_backend": "direct",
            "hicache_mem_layout": "layer_first",
            "hicache_write_policy": "write_through",
            "hicache_storage_prefetch_policy": "wait_complete",
            "hicache_storage_backend": backend,
            "hicache_storage_backend_extra_config": json.dumps(config or {}),
        }
    return arguments


@dataclass(frozen=True, slots=True)
class SglangAnswer(Answer):
    """
    Attributes:
        storage_tokens: of the cached tokens, those that came from the storage backend.
    """

    storage_tokens: int = 0


class SglangProcess(EngineProcess):
    """One SGLang engine in a process of its own."""

    environment: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    def launch(self) -> SglangProcess:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("sglang_process.py")),
                    json.dumps(self.arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=sglang_environment(**self.environment),
                start_new_session=True,
            )
        return self

    def ask(self, prompt: list[int], tokens: int = 4, logprobs: int = 5) -> SglangAnswer:
        """The answer to one prompt."""
        request = {"op": "generate", "prompts": [prompt], "tokens": tokens, "logprobs": logprobs}
        (row,) = self._ask(request)
        return SglangAnswer(
            tokens=tuple(row["tokens"]),
            logprobs=tuple(tuple(values) for values in row["logprobs"]),
            cached_tokens=row["cached_tokens"],
            first_token_seconds=row["first_token_seconds"],
            storage_tokens=row["storage_tokens"],
        )

    def flush(self) -> None:
        """Empty SGLang's own caches."""
        self._ask({"op": "reset"})
