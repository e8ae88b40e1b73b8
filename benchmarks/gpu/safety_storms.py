"""Cases of ``safety.py`` in which much goes on at once: sleeps amid copies, chunks that fail,
blocks that are reused."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import safety_workers
from safety_engine import (
    BLOCK_TOKENS,
    CHUNK_TOKENS,
    CHUNKS,
    CPU,
    MAX_TOKENS,
    WHOLE,
    Answer,
    Engine,
    Site,
    await_files,
    chunk_files,
    make_prompt,
    prompts_of,
    scrub,
    shelf_config,
)


def sleep(site: Site) -> None:
    """Levels 1 and 2 and the release of KV memory, while stores and loads are under way."""
    record, rng = site.record, random.Random(7)
    known, truth = prompts_of("sleep"), site.truth("w1", "sleep")
    whole = 12 * CHUNK_TOKENS
    transfer = shelf_config(site.shelf, threads_per_gpu=4)
    one = site.engine(transfer, enable_sleep_mode=not CPU)
    one.rpc(safety_workers.count_quiesced)
    record.check("first answers", one.ask(known), truth, 0)
    await_files(site.shelf, 12 * len(known))
    fresh = 2000
    for number in range(24):
        level, mode = (1, 2, 1, 0)[number % 4], ("abort", "keep")[number // 4 % 2]
        what = ("stores", "loads", "both")[number % 3]
        one.reset()
        sent: list[list[int]] = []
        if what != "loads":
            sent += [make_prompt(fresh + i, whole + 1) for i in range(10)]
            fresh += 10
        if what != "stores":
            sent += known
        rng.shuffle(sent)
        if number % 5 == 4:  # finished requests, whose stores still run
            one.llm.generate(
                [{"prompt_token_ids": each} for each in sent], one.sampling(1), use_tqdm=False
            )
        else:
            one.send(sent)
            time.sleep(rng.choice((0.0, 0.01, 0.03, 0.06, 0.1, 0.2)))
        error = nap(one, site, level, mode)
        ends = one.collect()
        record.note(
            {
                "step": f"{number}: level {level}, {mode}, {what}",
                "error": error,
                "answered": len(ends),
                "sent": len(sent),
            },
            ok=not error.startswith("FAULT"),
        )
        picked = rng.sample(range(len(known)), 4)
        record.check(
            f"{number}: after it", one.ask([known[i] for i in picked]), [truth[i] for i in picked]
        )
    one.reset()
    record.check("all, at the end", one.ask(known), truth, whole)
    record.fact(
        quiesced_loads_stores_ms=one.rpc(safety_workers.quiesced)[0],
        metrics=one.metrics(),
        files=len(chunk_files(site.shelf)),
    )
    one.stop()
    record.fact(scrub=scrub(site.shelf))
    after_sleep(site, known, truth, range(2000, fresh), whole)


def sleep_in_process(site: Site) -> None:
    """The same with the engine in this process, which vLLM puts to sleep at once: no drain before.

    Where vLLM refuses, since requests are loading, the workers alone are put to sleep.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    record, rng = site.record, random.Random(8)
    known, truth = prompts_of("sleep"), site.truth("w1", "sleep")
    whole = 12 * CHUNK_TOKENS
    one = site.engine(shelf_config(site.shelf, threads_per_gpu=2), enable_sleep_mode=not CPU)
    one.rpc(safety_workers.count_quiesced)
    record.check("first answers", one.ask(known), truth, 0)
    await_files(site.shelf, 12 * len(known))
    fresh = 5000
    for number in range(24):
        level, what = (1, 2)[number // 2 % 2], ("stores", "loads")[number % 2]
        one.reset()
        if what == "stores":
            sent = [make_prompt(fresh + i, whole + 1) for i in range(8)]
            fresh += 8
        else:
            sent = known
        one.send(sent)
        for _ in range(rng.randint(1, 5)):
            one.llm.llm_engine.step()
        one.abort()
        error = nap(one, site, level, "abort")
        if "remote KV transfer" in error:
            one.llm.llm_engine.step()
            nap_of_workers(one, site, level)
        record.note(
            {"step": f"{number}: level {level}, {what}", "error": error[:120]},
            ok=not error.startswith("FAULT"),
        )
        one.reset()
        picked = rng.sample(range(len(known)), 4)
        asked = [known[i] for i in picked]
        record.check(f"{number}: after it", one.ask(asked), [truth[i] for i in picked])
    one.reset()
    record.check("all, at the end", one.ask(known), truth, whole)
    found = one.rpc(safety_workers.quiesced)[0]
    record.fact(
        quiesced_loads_stores_ms=found, metrics=one.metrics(), files=len(chunk_files(site.shelf))
    )
    record.expect("some loads and stores were under way", ok=CPU or any(map(any, found)))
    one.stop()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    record.fact(scrub=scrub(site.shelf))
    after_sleep(site, known, truth, range(5000, fresh), whole)


def nap_of_workers(one: Engine, site: Site, level: int) -> None:
    """As ``nap``, past vLLM's scheduler."""
    if CPU:
        return
    one.rpc("sleep", level=level)
    one.rpc("wake_up")
    if level == 2:
        one.rpc("reload_weights", weights_path=str(site.model()))


def after_sleep(
    site: Site, known: list[list[int]], truth: list[Answer], seeds: range, whole: int
) -> None:
    """What was stored around the sleeps, read by an engine that computed none of it."""
    others = [make_prompt(seed, whole + 1) for seed in seeds]
    plain = Engine(site.model(), site.setup)
    right = plain.ask(others)
    plain.stop()
    two = site.engine()
    site.record.check("a fresh engine, known prompts", two.ask(known), truth, whole)
    answers = two.ask(others)
    site.record.check("a fresh engine, prompts of the sleeps", answers, right)
    site.record.fact(fresh_cached_share=sum(a["cached"] for a in answers) / whole / len(others))
    two.stop()


def nap(one: Engine, site: Site, level: int, mode: str) -> str:
    """Fall asleep and wake up again; what vLLM answered if it refused."""
    if CPU:  # vLLM's CPU worker cannot sleep: only the rest is tried
        return ""
    try:
        one.llm.sleep(level, mode=mode)
        if level == 0:
            one.llm.release_kv_cache_memory()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:300]
        is_known = "remote KV transfer" in text or "completed pause" in text
        try:
            one.llm.wake_up(["scheduling"])
        except Exception as second:
            return f"FAULT {text}; then {second}"
        return text if is_known else f"FAULT {text}"
    if level == 2:
        one.llm.wake_up(["weights"])
        one.rpc("reload_weights", weights_path=str(site.model()))
        one.llm.wake_up(["kv_cache"])
    elif level == 0:
        one.llm.wake_up(["kv_cache"])
    else:
        one.llm.wake_up()
    return ""


def sync(site: Site) -> None:
    """Loads within a step are asked for; chunks fail between lookup and load."""
    record, prompts, truth = site.record, prompts_of("sync"), site.truth("w1", "sync")
    transfer = shelf_config(site.shelf, sync_load_budget_bytes=1 << 30, hit_ttl_seconds=600)
    one = site.engine(transfer)
    record.check("first answers", one.ask(prompts), truth, 0)
    files = CHUNKS * len(prompts)
    record.expect("stored", ok=await_files(site.shelf, files) == files)
    one.reset()
    record.check("hits", one.ask(prompts), truth, WHOLE)
    for turn, harm in enumerate((lose, cut, flip, lose_all)):
        for path in chunk_files(site.shelf)[turn :: 5 if harm is not lose_all else 1]:
            harm(path)
        one.reset()
        record.check(f"{harm.__name__}, at once", one.ask(prompts, at_once=True), truth)
        await_files(site.shelf, files, 20)
        one.reset()
        record.check(f"{harm.__name__}, again", one.ask(prompts), truth)
        await_files(site.shelf, files, 20)
    one.reset()
    record.check("healed", one.ask(prompts), truth, WHOLE)
    record.fact(metrics=one.metrics(), scrub=scrub(site.shelf))
    one.stop()


def lose(path: Path) -> None:
    path.unlink()


def lose_all(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 16]))


def host_config() -> dict[str, Any]:
    """vLLM's own offloading to host memory."""
    if CPU:
        from tests.harness.host_memory import host_config as of_cpu

        return dict(of_cpu(CHUNK_TOKENS))
    settings = {"cpu_bytes_to_use": 256 << 20, "block_size": CHUNK_TOKENS}
    settings["spec_name"] = "CPUOffloadingSpec"  # type: ignore[assignment]
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": settings,
    }


def multi(site: Site, *, ours_first: bool) -> None:
    """Beside vLLM's host memory, with so few blocks that they are reused at once."""
    record, prompts, truth = site.record, prompts_of("multi"), site.truth("w1", "multi")
    children = [host_config(), shelf_config(site.shelf)]
    transfer = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": children[::-1] if ours_first else children},
    }
    blocks = 4 * (4 * CHUNK_TOKENS + 32) // BLOCK_TOKENS  # four requests' at a time
    limit = 8 * CHUNK_TOKENS if blocks > 8 * CHUNK_TOKENS // BLOCK_TOKENS else MAX_TOKENS
    one = site.engine(transfer, num_gpu_blocks_override=blocks, max_model_len=limit)
    for turn in range(4):
        rng = random.Random(turn)
        order = list(range(len(prompts)))
        rng.shuffle(order)
        asked, right = [prompts[i] for i in order], [truth[i] for i in order]
        record.check(f"turn {turn}", one.ask(asked, at_once=True), right)
    record.fact(metrics={**one.metrics(), **one.metrics("vllm:kv_offload")})
    one.stop()
    two = site.engine(max_model_len=limit)
    answers = two.ask(prompts)
    record.check("a fresh engine from the shelf", answers, truth)
    record.fact(
        fresh_cached_share=sum(a["cached"] for a in answers) / (4 * CHUNK_TOKENS) / len(answers),
        scrub=scrub(site.shelf),
    )
    two.stop()
