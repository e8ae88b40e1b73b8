"""One SGLang engine in a process of its own, driven by JSON lines on stdin and stdout.

    python tests/harness/sglang_process.py '{"model_path": "/path", "page_size": 16, ...}'

As ``engine_process.py``, with keyword arguments of ``sglang.Engine`` and these requests:

    generate  prompts (lists of token ids), tokens, logprobs -> an answer a prompt, in order
    reset     empty SGLang's own caches, GPU and host memory, as a restart would
    stop      end
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def _generate(engine: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    tokens = request["tokens"]
    answers = []
    for prompt in request["prompts"]:  # one at a time: each finds what the one before stored
        begun = time.monotonic()
        output = engine.generate(
            input_ids=prompt,
            sampling_params={
                "temperature": 0.0,
                "max_new_tokens": tokens,
                "ignore_eos": True,
            },
            return_logprob=True,
            top_logprobs_num=request["logprobs"],
        )
        meta = output["meta_info"]
        chosen = meta["output_token_logprobs"]
        top = meta["output_top_logprobs"]
        answers.append(
            {
                "tokens": [token for _, token, _ in chosen],
                "logprobs": [
                    [logprob, *sorted((entry[0] for entry in position), reverse=True)]
                    for (logprob, _, _), position in zip(chosen, top, strict=True)
                ],
                "cached_tokens": meta["cached_tokens"],
                "storage_tokens": (meta.get("cached_tokens_details") or {}).get("storage", 0),
                "first_token_seconds": time.monotonic() - begun,
            }
        )
    return answers


def _answer(engine: Any, request: dict[str, Any]) -> Any:
    operation = request["op"]
    if operation == "generate":
        return _generate(engine, request)
    if operation == "reset":
        return bool(engine.flush_cache().success)
    raise ValueError(f"unknown operation {operation!r}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what SGLang and its children print goes to stderr
    import sglang

    engine = sglang.Engine(**json.loads(sys.argv[1]))
    print(json.dumps({"ok": "ready"}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            break
        try:
            reply: dict[str, Any] = {"ok": _answer(engine, request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)
    engine.shutdown()
    print(json.dumps({"ok": "stopped"}), file=answers)


if __name__ == "__main__":
    main()
