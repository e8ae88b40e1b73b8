"""Starts engine processes, asks them, and compares what they answer.

For the demo, tests and benchmarks: it knows no vLLM, only ``engine_process.py``'s lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).parents[2]
BLOCK_TOKENS = 32  # vLLM's CPU attention wants a multiple of 32
CHUNK_TOKENS = 128  # small, so that a short prompt makes many chunk files
MAX_MODEL_TOKENS = 4096
# Two engines that compute the same tokens in batches of other shapes differ in the last bits of a
# float32: 3e-5 was the most seen between a prefix computed at once and in parts. One other token in
# 2,500 moved logprobs by 0.16 and more.
LOGPROB_TOLERANCE = 1e-3
START_SECONDS = 240.0  # 20 to 40 s are usual on 2 cores; other work on the machine multiplies that
ANSWER_SECONDS = 120.0


class EngineFailedError(Exception):
    """An engine process ended, hung or answered with an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said to one prompt.

    Attributes:
        logprobs: a row a token: the chosen token's, then the most likely ones', descending.
        cached_tokens: vLLM's ``num_cached_tokens``: prompt tokens that it did not compute.
        first_token_seconds: from arrival to the first token, by vLLM's clock.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[float, ...], ...]
    cached_tokens: int
    first_token_seconds: float

    def difference(self, other: Answer) -> float:
        """The largest difference of logprobs; infinite if the tokens differ."""
        if self.tokens != other.tokens:
            return float("inf")
        return max(
            abs(mine - theirs)
            for my_row, their_row in zip(self.logprobs, other.logprobs, strict=True)
            for mine, theirs in zip(my_row, their_row, strict=True)
        )


def connector_config(shelf: Path, **extra: object) -> dict[str, object]:
    """The ``kv_transfer_config`` of an engine with its shelf at ``shelf``."""
    return {
        "kv_connector": "KvshelfConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "shared_storage_path": str(shelf),
            "block_size": CHUNK_TOKENS,
            # What is compared here is what comes from the shelf; whether that is worth it for a
            # tiny model on a busy machine is another question.
            "admission": "always",
            **extra,
        },
    }


def engine_environment(tensor_parallel: int = 1) -> dict[str, str]:
    """The environment of an engine on a small machine without network."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # One core a rank where ranks share the machine; otherwise whatever there is.
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(rank) for rank in range(tensor_parallel))
        if tensor_parallel > 1
        else "nobind",
        "TOKENIZERS_PARALLELISM": "false",
    }


def engine_arguments(
    model: Path, shelf: Path | None, tensor_parallel: int = 1, **extra: object
) -> dict[str, object]:
    """Keyword arguments of ``vllm.LLM``; ``extra`` goes to the connector."""
    arguments: dict[str, object] = {
        "model": str(model),
        "dtype": "float32",
        "block_size": BLOCK_TOKENS,
        "max_model_len": MAX_MODEL_TOKENS,
        "max_num_batched_tokens": MAX_MODEL_TOKENS,
        "max_num_seqs": 8,
        "tensor_parallel_size": tensor_parallel,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "disable_log_stats": False,  # time to first token is among them
        "seed": 0,
    }
    if shelf is not None:
        arguments["kv_transfer_config"] = connector_config(shelf, **extra)
    return arguments


@dataclass
class EngineProcess:
    """One engine in a process of its own. Started by ``with`` or ``start``; not thread-safe."""

    name: str
    arguments: dict[str, object]
    log: Path
    tensor_parallel: int = 1
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _pending: bytes = field(default=b"", init=False)

    def launch(self) -> EngineProcess:
        """Begin to start; ``ready`` waits for the end of it."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-Pm",  # nothing from the directory that this runs in
                    "tests.harness.engine_process",
                    json.dumps(self.arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=engine_environment(self.tensor_parallel),
                start_new_session=True,  # so that stop() reaches its children too
            )
        return self

    def ready(self) -> EngineProcess:
        try:
            self._read(START_SECONDS)
        except EngineFailedError:
            self.stop()
            raise
        return self

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int = 8,
        logprobs: int = 5,
        adapter: dict[str, object] | None = None,
    ) -> list[Answer]:
        """Answers in the order of ``prompts``, which run as one batch.

        ``adapter``: of a LoRA adapter, the arguments of vLLM's LoRARequest.
        """
        request = {"op": "generate", "prompts": prompts, "tokens": tokens, "logprobs": logprobs}
        rows = self._ask({**request, "adapter": adapter})
        return [
            Answer(
                tokens=tuple(row["tokens"]),
                logprobs=tuple(tuple(values) for values in row["logprobs"]),
                cached_tokens=row["cached_tokens"],
                first_token_seconds=row["first_token_seconds"],
            )
            for row in rows
        ]

    def rpc(self, function: str, /, **arguments: object) -> Any:
        """Call a function, "module:name", in every worker; what it returns must be JSON's."""
        return self._ask({"op": "rpc", "function": function, "arguments": arguments})

    def call(self, method: str, /, **arguments: object) -> Any:
        """Call a method of vLLM's LLM."""
        return self._ask({"op": "call", "method": method, "arguments": arguments})

    def reset_prefix_cache(self, *, connector: bool = False, running: bool = False) -> None:
        """Empty vLLM's own prefix cache; blocks that stores still hold make it try again."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._ask({"op": "reset", "connector": connector, "running": running}):
            if time.monotonic() > deadline:
                raise EngineFailedError(f"{self.name}: the prefix cache could not be reset")
            time.sleep(0.1)

    def metrics(self, prefix: str = "kvshelf:") -> dict[str, float]:
        series: dict[str, float] = self._ask({"op": "metrics", "prefix": prefix})
        return series

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> bool:
        """End it and all its children. True if it ended by itself and in good order."""
        process, self._process = self._process, None
        if process is None:
            return True
        assert process.stdin is not None
        try:
            process.stdin.write(b'{"op": "stop"}\n')
            process.stdin.close()
            orderly = process.wait(timeout=60) == 0
        except (OSError, subprocess.TimeoutExpired):
            orderly = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return orderly

    def __enter__(self) -> EngineProcess:
        return self.launch().ready()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _ask(self, request: dict[str, object]) -> Any:
        process = self._process
        if process is None or process.stdin is None:
            raise EngineFailedError(f"{self.name} is not running")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise EngineFailedError(f"{self.name} is gone\n{self.log_tail()}") from error
        return self._read(ANSWER_SECONDS)

    def _read(self, timeout_seconds: float) -> Any:
        """The next answer. Unbuffered: bytes in a reader's buffer would be hidden from select."""
        process = self._process
        assert process is not None and process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise EngineFailedError(
                    f"{self.name} gave no answer in {timeout_seconds:.0f} s\n{self.log_tail()}"
                )
            got = os.read(process.stdout.fileno(), 1 << 20)
            if not got:
                raise EngineFailedError(f"{self.name} ended\n{self.log_tail()}")
            self._pending += got
        line, _, self._pending = self._pending.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineFailedError(f"{self.name}: {reply['error']}\n{self.log_tail()}")
        return reply["ok"]


def make_prompt(seed: int, tokens: int) -> list[int]:
    """``tokens`` byte tokens, the same for the same seed (Knuth's MMIX congruence)."""
    state = seed
    ids = []
    for _ in range(tokens):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        ids.append(state >> 56)
    return ids
