"""One vLLM engine in a process of its own, driven by JSON lines on stdin and stdout.

    python -m tests.harness.engine_process '{"model": "/path", "max_model_len": 4096, ...}'

The argument holds keyword arguments of ``vllm.LLM``. Each line on stdin is a request
``{"op": ..., ...}``, each line on stdout its answer, ``{"ok": ...}`` or ``{"error": text}``:

    generate  prompts (lists of token ids), tokens, logprobs -> an answer a prompt, in order;
              ``adapter``: keyword arguments of vLLM's LoRARequest
    reset     empty vLLM's own prefix cache, as a restart would; with ``connector`` the connector's
    rpc       call ``function`` ("module:name") in every worker with ``arguments`` by name
    call      call ``method`` of vLLM's LLM with ``arguments`` by name
    metrics   the series on vLLM's registry whose names begin with ``prefix``
    stop      end

Everything that vLLM prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def _take_stdout() -> Any:
    """The real stdout, for answers; file descriptor 1 becomes stderr, for vLLM and its children."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _generate(llm: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=request["tokens"],
        min_tokens=request["tokens"],
        ignore_eos=True,
        logprobs=request["logprobs"],
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    adapter = request.get("adapter")
    if adapter is not None:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest(**adapter)
    answers = []
    for output in llm.generate(prompts, sampling, use_tqdm=False, lora_request=adapter):
        first = output.outputs[0]
        answers.append(
            {
                "tokens": list(first.token_ids),
                # One list a position: the chosen token's logprob, then the most likely ones'.
                "logprobs": [
                    [
                        position[token].logprob,
                        *sorted((entry.logprob for entry in position.values()), reverse=True),
                    ]
                    for token, position in zip(first.token_ids, first.logprobs, strict=True)
                ],
                "cached_tokens": output.num_cached_tokens,
                "first_token_seconds": output.metrics.first_token_latency,
            }
        )
    return answers


def _metrics(prefix: str) -> dict[str, float]:
    """Series of the process's Prometheus registry, labels other than the engine's appended."""
    from prometheus_client import REGISTRY

    series: dict[str, float] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if not sample.name.startswith(prefix):
                continue
            labels = ",".join(
                f"{key}={value}"
                for key, value in sorted(sample.labels.items())
                if key not in ("model_name", "engine")
            )
            series[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return series


def _answer(llm: Any, request: dict[str, Any]) -> Any:
    operation = request["op"]
    if operation == "generate":
        return _generate(llm, request)
    if operation == "reset":
        return llm.reset_prefix_cache(
            reset_running_requests=request["running"], reset_connector=request["connector"]
        )
    if operation == "rpc":
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        return llm.collective_rpc(function, kwargs=request["arguments"])
    if operation == "call":
        return getattr(llm, request["method"])(**request["arguments"])
    if operation == "metrics":
        return _metrics(request["prefix"])
    raise ValueError(f"unknown operation {operation!r}")


def main() -> None:
    answers = _take_stdout()
    from vllm import LLM
    from vllm.config import KVEventsConfig

    arguments = json.loads(sys.argv[1])
    if "kv_events_config" in arguments:  # the one that vLLM does not take as a mapping
        arguments["kv_events_config"] = KVEventsConfig(**arguments["kv_events_config"])
    llm = LLM(**arguments)
    print(json.dumps({"ok": "ready"}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            break
        try:
            reply: dict[str, Any] = {"ok": _answer(llm, request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)
    # vLLM's own shutdown, so that the connector closes and nothing outlives this process.
    llm.llm_engine.engine_core.shutdown(timeout=30)
    print(json.dumps({"ok": "stopped"}), file=answers)


if __name__ == "__main__":
    main()
