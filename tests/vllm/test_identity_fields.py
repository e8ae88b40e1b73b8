"""Identity under attack: each field of a real engine's identity, changed alone, stops sharing.

The fields are enumerated from the identity itself: a new one without a case here fails.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.config import LoRAConfig, SpeculativeConfig  # noqa: E402

from kvshelf import Chunk, Shelf, make_key  # noqa: E402
from kvshelf.disk.namespace import Identity, diff  # noqa: E402
from kvshelf.engine import EngineConfig, FileStatus  # noqa: E402
from kvshelf.vllm import identity as builder  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402
from tests.harness.codec import decode  # noqa: E402

from .configs import kv_cache_config, save_config, vllm_config  # noqa: E402

Site = SimpleNamespace  # config, kv, salt, patch: what an identity is made of
KEY = make_key(bytes(range(32)), 0)
CONFIG = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2)


def set_at(path: str, value: Any) -> Callable[[Site], None]:
    """Sets an attribute of vLLM's configuration, whatever vLLM would make of it."""

    def change(site: Site) -> None:
        *parents, name = path.split(".")
        target = site.config
        for parent in parents:
            target = getattr(target, parent)
        object.__setattr__(target, name, value)

    return change


def patched(module: Any, name: str, value: Any) -> Callable[[Site], None]:
    return lambda site: site.patch.setattr(module, name, lambda *_: value)


def other_kv(**kwargs: Any) -> Callable[[Site], None]:
    return lambda site: setattr(site, "kv", kv_cache_config(**kwargs))


def other_block_tokens(site: Site) -> None:
    spec = site.kv.kv_cache_groups[0].kv_cache_spec
    object.__setattr__(spec, "block_size", 2 * spec.block_size)


def other_chunk(site: Site) -> None:
    site.config.kv_transfer_config.kv_connector_extra_config["block_size"] = 128


def other_weights(site: Site) -> None:
    (Path(site.config.model_config.model) / "model.bin").write_bytes(b"other weights")


def lora(site: Site) -> None:
    set_at("lora_config", LoRAConfig())(site)


def speculative(site: Site) -> None:
    method = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=2,
        prompt_lookup_max=3,
        target_model_config=site.config.model_config,
        target_parallel_config=site.config.parallel_config,
    )
    set_at("speculative_config", method)(site)


def other_file(site: Site) -> None:
    (Path(site.config.model_config.model) / "preprocessor_config.json").write_text("{}")


# Top-level field -> how an engine comes to differ in it.
CASES: dict[str, Callable[[Site], None]] = {
    "format": lambda site: site.fields.update(format=3),
    "engine": patched(builder.compat, "version_line", "0.99"),
    "model": patched(builder, "model_name", "another"),
    "weights": other_weights,
    "load": set_at("load_config.model_loader_extra_config", {"pattern": "another"}),
    "files": other_file,
    "hf_config": lambda site: save_config(site.config.model_config.model, rope_theta=5e5),
    "context": patched(builder, "_context_fields", {"max_model_len": 4096}),
    "cache_dtype": set_at("cache_config.cache_dtype", "fp8_e5m2"),
    "kv_cache_layout": patched(builder.compat, "kv_cache_layout", "another"),
    "environment": lambda site: site.patch.setenv("VLLM_BATCH_INVARIANT", "1"),
    "device": patched(builder, "_device", "another"),
    "block_tokens": other_block_tokens,
    "chunk": other_chunk,
    "groups": other_kv(groups=2),
    "parallel": set_at("parallel_config.tensor_parallel_size", 2),
    "hash": set_at("cache_config.prefix_caching_hash_algo", "sha256_cbor"),
    "salt": lambda site: setattr(site, "salt", "team-a"),
    "additional_config": set_at("additional_config", {"another": 1}),
    "attention_config": set_at("attention_config.backend", "ANOTHER"),
    "cache_config": set_at("cache_config.mamba_cache_mode", "align"),
    "compilation_config": set_at("compilation_config.mode", 3),
    "diffusion_config": set_at("diffusion_config", "another"),
    "kernel_config": set_at("kernel_config.moe_backend", "triton"),
    "load_config": set_at("load_config.ignore_patterns", ["*.bin"]),
    "lora_config": lora,
    "mamba_config": set_at("mamba_config.enable_stochastic_rounding", True),
    "model_config": set_at("model_config.quantization", "fp8"),
    "parallel_config": set_at("parallel_config.enable_expert_parallel", True),
    "scheduler_config": set_at("scheduler_config.scheduler_cls", "another"),
    "speculative_config": speculative,
}
# What cannot differ without another.
TOGETHER = {
    "block_tokens": {"block_tokens", "groups"},
    "groups": {"block_tokens", "groups"},
}


def build(folder: Path, patch: pytest.MonkeyPatch, change: Callable[[Site], None]) -> Identity:
    site = Site(config=vllm_config(folder / "tiny"), kv=kv_cache_config(), salt="", patch=patch)
    (folder / "tiny" / "model.bin").write_bytes(b"weights")
    site.fields = {}
    change(site)
    made = build_identity(site.config, site.kv, site.salt)
    return Identity({**made.fields, **site.fields})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    with pytest.MonkeyPatch.context() as patch:
        return build(tmp_path_factory.mktemp("base"), patch, lambda _: None)


def test_every_field_has_a_case(base: Identity) -> None:
    assert set(CASES) == set(base.fields)


@pytest.mark.parametrize("field", CASES)
def test_an_engine_that_differs_in_it_has_another_namespace(
    base: Identity, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = build(tmp_path, monkeypatch, CASES[field])
    changed = {difference.field.split(".")[0] for difference in diff(base, other)}
    assert field in changed and changed <= TOGETHER.get(field, {field})
    assert other.digest != base.digest and other.folder != base.folder


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values that hold no others, empty ones included."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in members:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*path, name))
        else:
            yield (*path, name)


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else "another"


def test_each_value_alone_makes_another_digest_and_folder(base: Identity) -> None:
    """Whatever lies how deep: of any two identities, no digest and no folder is the same."""
    fields = base.to_json()["identity"]
    seen = {base.digest: base.folder}
    paths = list(leaves(fields))
    assert len(paths) > 60
    for path in paths:
        for value in (other_value, lambda _: None, str):
            changed = copy.deepcopy(fields)
            target = changed
            for step in path[:-1]:
                target = target[step]
            target[path[-1]] = value(target[path[-1]])
            if changed == fields or not isinstance(changed["model"], str):
                continue
            other = Identity(changed)
            assert other.digest != base.digest, path
            seen[other.digest] = other.folder
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("field", CASES)
def test_a_file_copied_into_the_other_folder_is_foreign(
    base: Identity, field: str, tmp_path: Path
) -> None:
    """Somebody restores a backup into the wrong folder: right name, size and checksums."""
    fields = base.to_json()["identity"]
    fields[field] = other_value(json.dumps(fields[field]))
    other = Identity(fields)
    blocks = np.random.default_rng(1).integers(0, 256, (8, 4096), dtype=np.uint8)
    with Shelf.of_arrays(tmp_path, base, blocks, config=CONFIG) as shelf:
        assert shelf.store([Chunk(KEY, range(3))]) == [FileStatus.OK]
        mine = tmp_path / shelf.path_of(KEY)
    before = blocks[:3].copy()
    with Shelf.of_arrays(tmp_path, other, blocks, config=CONFIG) as shelf:
        theirs = tmp_path / shelf.path_of(KEY)
        assert theirs.parts[-4] != mine.parts[-4] and shelf.lookup([KEY]) != [FileStatus.OK]
        theirs.parent.mkdir(parents=True)
        shutil.copy(mine, theirs)
        header = decode(theirs.read_bytes())
        assert header.namespace == base.digest != other.digest
        assert shelf.load([Chunk(KEY, range(3, 6))]) == [FileStatus.FOREIGN]
        assert not theirs.exists() and mine.exists()
    assert (blocks[:3] == before).all()
