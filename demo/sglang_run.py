"""The demo for SGLang: two engines, one directory, damaged files; kvshelf and SGLang's own backend.

    python demo/sglang_run.py            (make demo-sglang sets the environment)

Of each backend the first engine answers three prompts and ends. The second one, a process of its
own, gets the first prompt's files as they are, the second's with flipped bits and the third's cut
in half. Exit status 0 says that with kvshelf every answer was the first engine's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.engines import LOGPROB_TOLERANCE, make_prompt
from tests.harness.sglang_engines import (
    PAGE_TOKENS,
    SglangProcess,
    sglang_arguments,
    storage_config,
    why_no_sglang,
)
from tests.harness.tiny_model import make_tiny_model

PAGES = 25
PROMPTS = [make_prompt(seed, PAGES * PAGE_TOKENS) for seed in range(3)]
STORE_SECONDS = 60.0


def flip(content: bytes) -> bytes:
    """One bit in every 64 bytes of KV: the highest of an exponent, of numbers in float32."""
    damaged = bytearray(content)
    begin = 3 + (4096 if content.startswith(b"KVSHELF") else 0)
    damaged[begin::64] = bytes(byte ^ 0x40 for byte in damaged[begin::64])
    return bytes(damaged)


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES: list[tuple[str, Callable[[bytes], bytes] | None]] = [
    ("files as they were stored", None),
    ("one bit flipped in every 64 bytes", flip),
    ("files cut in half", halve),
]


def files_of(folder: Path) -> set[Path]:
    return {*folder.rglob("*.kv"), *folder.rglob("*.bin")}


def run(name: str, model: Path, work: Path) -> bool:
    """Print a table of one backend. Whether all answers were right."""
    folder = work / name
    folder.mkdir()
    config: dict[str, object] = {"file_storage_path": str(folder), "prefetch_threshold": 16}
    backend = "file"
    if name == "kvshelf":
        backend, config = "dynamic", storage_config(folder)
    arguments = sglang_arguments(model, backend, config)
    answers, files = [], []
    with SglangProcess("first", arguments, work / f"{name}-first.log") as engine:
        for prompt in PROMPTS:
            before = files_of(folder)
            answers.append(engine.ask(prompt))
            deadline = time.monotonic() + STORE_SECONDS
            while len(files_of(folder) - before) < PAGES and time.monotonic() < deadline:
                time.sleep(0.1)
            files.append(files_of(folder) - before)
    for made, (_, damage) in zip(files, DAMAGES, strict=True):
        for path in made if damage else ():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(damage(content))
    all_right = True
    with SglangProcess("second", arguments, work / f"{name}-second.log") as engine:
        for prompt, truth, (what, _) in zip(PROMPTS, answers, DAMAGES, strict=True):
            answer = engine.ask(prompt)
            right = answer.difference(truth) <= LOGPROB_TOLERANCE  # never true of NaN
            all_right &= right
            print(
                f"{name:<9} {what:<36} {answer.storage_tokens:>5} of {len(prompt)} tokens from "
                f"storage   {'right answer' if right else 'WRONG ANSWER'}",
                flush=True,
            )
    return all_right


def main() -> int:
    reason = why_no_sglang()
    if reason:
        print(reason)
        return 2
    with tempfile.TemporaryDirectory(prefix="kvshelf-sglang-") as work:
        model = make_tiny_model(Path(work) / "tiny-llama")
        run("file", model, Path(work))
        return 0 if run("kvshelf", model, Path(work)) else 1


if __name__ == "__main__":
    sys.exit(main())
