"""``vllm serve`` in a process of its own, and the few requests that the tests make of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.harness.engines import (
    BLOCK_TOKENS,
    MAX_MODEL_TOKENS,
    connector_config,
    engine_environment,
)

START_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of /v1/completions: ``tokens`` as text "token_id:N", their logprobs."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int


class Server:
    """One replica on a free port of 127.0.0.1. ``launch`` begins to start it, ``ready`` waits."""

    def __init__(self, name: str, model: Path, shelf: Path, log: Path) -> None:
        self.name = name
        self.model = model
        self.shelf = shelf
        self.log = log
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def launch(self) -> Server:
        # What "vllm serve" runs; the command itself looks for a distribution named vllm, and that
        # of the CPU build has another name.
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.model)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--served-model-name", "tiny"),
            *("--dtype", "float32", "--block-size", str(BLOCK_TOKENS)),
            *("--max-model-len", str(MAX_MODEL_TOKENS), "--max-num-seqs", "8"),
            *("--max-num-batched-tokens", str(MAX_MODEL_TOKENS)),
            *("--enforce-eager", "--enable-prompt-tokens-details"),
            *("--kv-transfer-config", json.dumps(connector_config(self.shelf))),
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=engine_environment(),
                start_new_session=True,
            )
        return self

    def ready(self) -> Server:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process is not None and self._process.poll() is None, self.log_tail()
            assert time.monotonic() < deadline, self.log_tail()
            with contextlib.suppress(httpx.TransportError):
                if self._client.get("/health").status_code == httpx.codes.OK:
                    return self
            time.sleep(0.2)

    def complete(self, prompt: list[int], tokens: int = 8) -> Completion:
        reply = self._client.post(
            "/v1/completions",
            json={
                "model": "tiny",
                "prompt": prompt,
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
                "logprobs": 1,
                "return_tokens_as_token_ids": True,
            },
        )
        assert reply.status_code == httpx.codes.OK, reply.text + self.log_tail()
        body: dict[str, Any] = reply.json()
        choice = body["choices"][0]
        details = body["usage"]["prompt_tokens_details"] or {}
        return Completion(
            text=choice["text"],
            tokens=tuple(choice["logprobs"]["tokens"]),
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            cached_tokens=details.get("cached_tokens") or 0,
        )

    def metric(self, name: str) -> float:
        """The sum of a metric's series on /metrics."""
        lines = self._client.get("/metrics").text.splitlines()
        samples = [line for line in lines if line.startswith((name + "{", name + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> bool:
        """SIGTERM, as an orchestrator does. True if it ended by itself within a minute."""
        process, self._process = self._process, None
        self._client.close()
        if process is None:
            return True
        process.terminate()
        try:
            process.wait(timeout=60)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return ended

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
