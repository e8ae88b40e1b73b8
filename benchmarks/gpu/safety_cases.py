"""The cases of ``safety.py``: each runs engines with kvshelf in this process and compares answers
with those of engines without it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safety_workers
from safety_engine import (
    CHUNKS,
    CPU,
    SHAPE,
    WHOLE,
    Answer,
    Engine,
    Record,
    Site,
    await_files,
    calibrate,
    make_model,
    make_prompt,
    prompts_of,
    scrub,
    shelf_config,
)
from safety_storms import multi, sleep, sleep_in_process, sync

NEW_OLD = ("w1", "w2")


def prepare(site: Site) -> None:
    """Make both models, choose a data type whose rounding hides nothing, ask without kvshelf."""
    tried = {}
    choices = (("float32", ""),) if CPU else (("bfloat16", ""), ("float32", "TRITON_ATTN"))
    only = os.environ.get("SAFETY_DTYPE", "")
    for dtype, backend in [each for each in choices if only in each[0]]:
        for seed, name in enumerate(NEW_OLD):
            make_model(site.folder / dtype / name, 20 + seed, dtype)
        setup = {"dtype": dtype, "backend": backend}
        engine = Engine(site.folder / dtype / "w1", setup)
        found = calibrate(engine, [*prompts_of("weights"), *prompts_of("multi")[:4]])
        tried[dtype] = found
        if found["one_block_least"] > 4 * found["rounding"] or backend or CPU:
            break
        engine.stop()
    # Nearer to rounding: one block of other tokens is the least that can go wrong.
    least = max(found["one_block_least"], 1e-3)
    setup["tolerance"] = max(2 * found["rounding"], (max(found["rounding"], 1e-6) * least) ** 0.5)
    site.record.fact(calibration=tried, **setup)
    site.record.result["ok"] = setup["tolerance"] < found["one_block_least"]
    (site.folder / "setup.json").write_text(json.dumps(setup))
    (site.folder / "truth-w1.json").write_text(json.dumps(truth_of(engine)))
    engine.stop()
    engine = Engine(site.model("w2"), site.setup)
    (site.folder / "truth-w2.json").write_text(json.dumps(truth_of(engine, "weights")))
    engine.stop()


def truth_of(engine: Engine, *names: str) -> dict[str, list[Answer]]:
    found = {}
    for name in names or ("weights", "sync", "multi", "sleep"):
        engine.reset()
        found[name] = engine.ask(prompts_of(name))
    return found


def weights(site: Site, **arguments: Any) -> None:
    """Epochs: reloads there and back, rows in place, resets, two engines."""
    record, prompts = site.record, prompts_of("weights")
    old, new = site.truth("w1", "weights"), site.truth("w2", "weights")
    files = CHUNKS * len(prompts) * int(arguments.get("tensor_parallel_size", 1))
    paths = {name: str(site.model(name)) for name in NEW_OLD}
    one = site.engine(**arguments)
    record.check("first answers", one.ask(prompts), old, 0)
    record.expect("stored", ok=await_files(site.shelf, files) == files, files=files)
    one.reset(connector=True)
    record.check("reset with connector, nothing changed", one.ask(prompts), old, WHOLE)
    one.rpc(safety_workers.nothing)
    one.reset()
    record.check("rpc without a change, reset", one.ask(prompts), old, WHOLE)
    for turn, (connector, cached) in enumerate(((True, 0), (False, WHOLE))):
        one.rpc("reload_weights", weights_path=paths["w2"])
        one.reset(connector=connector)
        record.check(f"reload of w2, turn {turn}", one.ask(prompts), new, cached)
        count = await_files(site.shelf, 2 * files)
        record.expect("stored of both", ok=count == 2 * files, files=count)
        one.rpc("reload_weights", weights_path=paths["w1"])
        one.reset(connector=connector)
        record.check(f"reload of w1, turn {turn}", one.ask(prompts), old, WHOLE)
    one.rpc(safety_workers.set_rows, rows=64, factor=2.0)
    one.reset()
    first = one.ask(prompts)
    record.check("rows in place", first, first, 0)
    count = await_files(site.shelf, 3 * files)
    one.reset()
    record.check("rows in place, reset", one.ask(prompts), first, WHOLE)
    one.rpc(safety_workers.set_rows, rows=64, factor=0.5)
    one.reset()
    record.check("rows set back", one.ask(prompts), old, WHOLE)
    one.rpc("reload_weights", weights_path=paths["w2"])
    unreset = one.ask([make_prompt(990)])
    outcomes = one.metrics("kvshelf:store_outcomes")
    dropped = {k: v for k, v in outcomes.items() if "weights" in k}
    record.expect(
        "no reset: nothing stored or loaded",
        ok=bool(dropped) and not unreset[0]["cached"],
        outcomes=dropped,
    )
    one.reset()
    record.check("reset after that", one.ask(prompts), new, WHOLE)
    record.fact(metrics=one.metrics())
    one.stop()
    two = site.engine(**arguments)
    record.check("another engine, w1", two.ask(prompts), old, WHOLE)
    two.reset(connector=True)
    two.rpc("reload_weights", weights_path=paths["w2"])
    record.check("another engine, w2 into an empty cache", two.ask(prompts), new, WHOLE)
    two.stop()
    record.fact(scrub=scrub(site.shelf))


def adapters(site: Site) -> None:
    """LoRA adapters of one name and other content."""
    from vllm.lora.request import LoRARequest

    record, prompts, path = site.record, prompts_of("adapters"), site.folder / "adapter"
    if not CPU and site.setup["dtype"] == "float32":
        record.expect("not run: vLLM's LoRA kernels take no float32", ok=True)
        return
    lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    plain = Engine(site.model(), site.setup, **lora)
    truth = {}
    for seed in (1, 2):
        make_adapter(path, seed)
        truth[seed] = plain.ask(prompts, adapter=LoRARequest(f"n{seed}", seed, str(path)))
    plain.stop()
    one = site.engine(**lora)
    for seed, cached in ((1, 0), (2, 0), (1, WHOLE), (2, WHOLE)):
        make_adapter(path, seed)
        one.reset()
        request = LoRARequest("x", 1, str(path), load_inplace=True)
        record.check(f"adapter {seed}", one.ask(prompts, adapter=request), truth[seed], cached)
        await_files(site.shelf, CHUNKS * len(prompts) * (1 if seed == 1 and not cached else 2))
    one.stop()
    two = site.engine(**lora)
    make_adapter(path, 1)
    request = LoRARequest("x", 5, str(path))
    record.check("another engine", two.ask(prompts, adapter=request), truth[1], WHOLE)
    two.stop()


def make_adapter(folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    hidden, keys = SHAPE["hidden_size"], SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    tensors = {}
    for layer in range(SHAPE["num_hidden_layers"]):
        for name, outputs in (("q_proj", hidden), ("v_proj", keys)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            down = torch.randn(8, hidden, generator=generator) * 2 / hidden**0.5
            tensors[f"{stem}.lora_A.weight"] = down
            tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, 8, generator=generator) * 0.3
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def big(site: Site) -> None:
    """An 8B shape: what reading weights and watching them cost, at the default share of memory."""
    from engine import write_model

    record, prompts = site.record, [make_prompt(1, 4097)]
    setup = {"dtype": "bfloat16"}
    arguments = {
        "load_format": "dummy",
        "gpu_memory_utilization": 0.9,
        "max_model_len": 16384,
        "kv_cache_memory_bytes": None,
    }
    one = Engine(
        Path(write_model(site.folder / "8b")), setup, shelf_config(site.shelf), **arguments
    )
    record.expect(
        "starts with gpu_memory_utilization 0.9", ok=True, seconds=round(one.start_seconds, 1)
    )
    record.fact(
        about=one.rpc(safety_workers.about)[0], idle=one.rpc(safety_workers.weigh, rounds=5)[0]
    )
    first = one.ask(prompts)
    await_files(site.shelf, 16)
    one.reset()
    start = time.perf_counter()
    record.check("a hit", one.ask(prompts), first, 4096)
    record.fact(hit_ms=round(1e3 * (time.perf_counter() - start)), metrics=one.metrics())
    one.stop()


CASES: dict[str, Callable[[Site], None]] = {
    "prepare": prepare,
    "weights": weights,
    "sync": sync,
    "multi-host-first": lambda site: multi(site, ours_first=False),
    "multi-ours-first": lambda site: multi(site, ours_first=True),
    "adapters": adapters,
    "sleep": sleep,
    "sleep-in-process": sleep_in_process,
    "weights-tp2": lambda site: weights(site, tensor_parallel_size=2),
    "big": big,
}


def run(folder: Path, case: str, out: Path) -> None:
    setup = folder / "setup.json"
    tolerance = json.loads(setup.read_text())["tolerance"] if setup.exists() else 0.0
    if case == "big":
        tolerance = 0.05
    record = Record(out, tolerance)
    site = Site(folder, case, record)
    shutil.rmtree(site.shelf, ignore_errors=True)
    CASES[case](site)
    record.fact(done=True)
