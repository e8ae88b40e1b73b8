"""vLLM engines in this process, stepped by hand; prints one JSON line: run by test_guards.py.

    python stepped_engine.py MODEL SHELF

Answers are compared by the caller with those of an engine without kvshelf, which comes first.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

from tests.harness.engines import CHUNK_TOKENS, connector_config, engine_arguments, make_prompt
from tests.harness.host_memory import host_config

PROMPT_TOKENS = 3 * CHUNK_TOKENS + 9
ANSWER_TOKENS = 24
BLOCKS = 40  # of KV memory: four requests
PROMPTS = [make_prompt(seed, PROMPT_TOKENS) for seed in range(10)]
PARAMETERS = SamplingParams(
    max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS, temperature=0.0, logprobs=3
)


class Stepped:
    def __init__(self, model: str, transfer: dict[str, Any] | None) -> None:
        arguments = engine_arguments(model, None)  # type: ignore[arg-type]
        arguments |= {"num_gpu_blocks_override": BLOCKS, "max_model_len": 1024}
        if transfer is not None:
            arguments["kv_transfer_config"] = transfer
        self.engine = LLM(**arguments).llm_engine  # type: ignore[arg-type]
        self.answers: dict[str, Any] = {}
        self.names = 0

    def add(self, prompt: list[int]) -> str:
        self.names += 1
        name = f"request-{self.names}"
        self.engine.add_request(name, {"prompt_token_ids": prompt}, PARAMETERS)
        return name

    def step(self) -> None:
        for output in self.engine.step():
            if output.finished:
                (answer,) = output.outputs
                chosen = [
                    values[token].logprob
                    for token, values in zip(answer.token_ids, answer.logprobs, strict=True)
                ]
                self.answers[output.request_id] = [list(answer.token_ids), chosen]

    def ask(self, *prompts: list[int]) -> list[Any]:
        names = [self.add(prompt) for prompt in prompts]
        while self.engine.has_unfinished_requests():
            self.step()
        return [self.answers[name] for name in names]


def reset_and_abort(one: Stepped) -> list[Any]:
    """Answers of all prompts, after requests were reset and clients hung up in every phase."""
    for steps in range(12):
        name = one.add(PROMPTS[steps % len(PROMPTS)])
        for _ in range(steps):
            one.step()
        if steps % 3 == 2:
            try:
                one.engine.reset_prefix_cache(reset_running_requests=True)
            except RuntimeError as error:  # vLLM's answer while a request is loading
                assert "remote KV transfer" in str(error)
            one.step()
        one.engine.abort_request([name])
        one.step()
    return one.ask(*PROMPTS)


def main() -> int:
    model, shelf = sys.argv[1:]
    alone = Stepped(model, None)
    truth = alone.ask(*PROMPTS)
    told: dict[str, Any] = {"truth": truth}
    told["first"] = reset_and_abort(Stepped(model, connector_config(shelf)))
    # A second engine of ours in one process, beside vLLM's host memory, with little KV memory.
    several = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "connectors": [host_config(CHUNK_TOKENS), connector_config(f"{shelf}-multi")]
        },
    }
    both = Stepped(model, several)
    told["multi"] = [both.ask(*PROMPTS) for _ in range(3)][-1]
    del both
    # What the two stored, loaded by engines that computed nothing.
    told["from first"] = Stepped(model, connector_config(shelf)).ask(*PROMPTS)
    told["from multi"] = Stepped(model, connector_config(f"{shelf}-multi")).ask(*PROMPTS)
    sys.stdout.write(f"\nTOLD {json.dumps(told)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
