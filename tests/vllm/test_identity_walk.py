"""Every field of vLLM's configuration is judged; what is in separates, what is out does not.

Runs on every supported version (make test-window test-matrix): a version that adds a field fails
here until somebody has judged it.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
import vllm.config as vllm_configs  # noqa: E402
from vllm import envs  # noqa: E402
from vllm.config import VllmConfig  # noqa: E402

from kvshelf.vllm import compat  # noqa: E402
from kvshelf.vllm.identity import build_identity  # noqa: E402
from kvshelf.vllm.identity.env import environment_fields, left_out  # noqa: E402
from kvshelf.vllm.identity.fields import JUDGED, Judgment, fields_in  # noqa: E402

from .configs import kv_cache_config, vllm_config  # noqa: E402
from .judged import FIELDS, VARIABLES  # noqa: E402


def all_classes() -> dict[str, type]:
    """All dataclasses in vLLM's modules of configuration, by name."""
    classes: dict[str, type] = {}
    for info in pkgutil.iter_modules(vllm_configs.__path__, f"{vllm_configs.__name__}."):
        module = importlib.import_module(info.name)
        classes |= {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and dataclasses.is_dataclass(value)
            and value.__module__.startswith(vllm_configs.__name__)
        }
    return classes


CLASSES = all_classes()


def classes_in(field: Any) -> set[str]:
    """Names of the configuration classes that a field may hold."""
    return set(re.findall(r"\w+", str(field.type))) & CLASSES.keys()


def counting_classes() -> Iterator[str]:
    """Names of the classes that an identity reads: VllmConfig, and those in fields that are in."""
    todo, seen = ["VllmConfig"], {"VllmConfig"}
    while todo:
        name = todo.pop()
        yield name
        judged = JUDGED.get(name, Judgment())
        skipped = judged.left_out()
        for each in dataclasses.fields(CLASSES[name]):
            if each.name in skipped:
                continue
            found = classes_in(each)
            todo += found - seen
            seen |= found


COUNTING = sorted(counting_classes())
# Options of a modality are sizes and counts; all of them are in, whatever they are.
WHOLE = {name for name in COUNTING if name.endswith("DummyOptions")}


def fields_of(name: str) -> list[str]:
    return [each.name for each in dataclasses.fields(CLASSES[name])]


@pytest.mark.parametrize("name", [name for name in COUNTING if name not in WHOLE])
def test_every_field_is_judged(name: str) -> None:
    unjudged = set(fields_of(name)) - inside(name) - JUDGED.get(name, Judgment()).left_out()
    assert not unjudged, f"nobody has judged these fields of {name}: in or out? {unjudged}"


def test_no_field_is_judged_twice() -> None:
    for name in {*JUDGED, *FIELDS}:
        judged = JUDGED.get(name, Judgment())
        names = " ".join(
            (FIELDS.get(name, ""), *judged.elsewhere.values(), *judged.out.values())
        ).split()
        assert len(names) == len(set(names)), name


def test_every_environment_variable_is_judged() -> None:
    out, known = left_out().keys(), set(VARIABLES.split())
    assert not out & known
    unjudged = set(envs.environment_variables) - out - known
    assert not unjudged, f"nobody has judged these variables: in or out? {unjudged}"


# Where an instance of each class stands in the configuration below.
PATHS = {
    "VllmConfig": "",
    "ModelConfig": "model_config",
    "MultiModalConfig": "model_config.multimodal_config",
    "QuantizationConfigArgs": "model_config.quantization_config",
    "QuantSpec": "model_config.quantization_config.linear",
    "CacheConfig": "cache_config",
    "ParallelConfig": "parallel_config",
    "EPLBConfig": "parallel_config.eplb_config",
    "SchedulerConfig": "scheduler_config",
    "LoadConfig": "load_config",
    "LoRAConfig": "lora_config",
    "SpeculativeConfig": "speculative_config",
    "AttentionConfig": "attention_config",
    "HiSparseConfig": "attention_config.hisparse_config",
    "MambaConfig": "mamba_config",
    "KernelConfig": "kernel_config",
    "IrOpPriorityConfig": "kernel_config.ir_op_priority",
    "DiffusionConfig": "diffusion_config",
    "CompilationConfig": "compilation_config",
    "PassConfig": "compilation_config.pass_config",
}


def at(config: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        config = getattr(config, name)
    return config


def put(config: Any, path: str, value: Any) -> None:
    parent, _, name = path.rpartition(".")
    object.__setattr__(at(config, parent), name, value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A configuration that has an instance of every class, whether they go together or not."""
    folder = tmp_path_factory.mktemp("walk") / "tiny"
    config = vllm_config(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("MultiModalConfig", "QuantizationConfigArgs", "QuantSpec", "LoRAConfig"):
        put(config, PATHS[name], CLASSES[name]())
    for name, arguments in (("DiffusionConfig", {"canvas_length": 8}), ("HiSparseConfig", {})):
        if name in CLASSES:
            put(config, PATHS[name], CLASSES[name](**arguments))
    speculative = CLASSES["SpeculativeConfig"](
        method="ngram",
        num_speculative_tokens=2,
        prompt_lookup_max=3,
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )
    put(config, "speculative_config", speculative)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "untouched_hf_config", lambda model: model.hf_config)
        yield config


def digest(config: Any) -> bytes:
    return build_identity(config, kv_cache_config(), "").digest


def other(value: Any) -> Any:
    """A value that is not this one, of its type where it has one."""
    if isinstance(value, Enum):
        return next(each for each in type(value) if each is not value)
    if isinstance(value, torch.dtype):
        return torch.float16 if value != torch.float16 else torch.bfloat16
    kinds: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
        (bool, lambda old: not old),
        (int | float, lambda old: old + 1),
        (str, lambda old: f"{old}x"),
        (dict, lambda old: {**old, "another": 1}),
        (list | tuple, lambda old: [*old, "another"]),
        (set | frozenset, lambda old: {*old, "another"}),
    )
    for kind, change in kinds:
        if isinstance(value, kind):
            return change(value)
    return "another"


def inside(name: str) -> set[str]:
    """Fields of a class that were judged to be in."""
    return set(FIELDS.get(name, "").split())


def reasoned(name: str) -> set[str]:
    """Fields of a class that are left out, and nothing stands for them."""
    return set(" ".join(JUDGED.get(name, Judgment()).out.values()).split())


def cases(which: Callable[[str], set[str]]) -> list[Any]:
    """Fields that hold configurations are changed by the fields of these."""
    return [
        pytest.param(name, field.name, id=f"{name}.{field.name}")
        for name in COUNTING
        if name in PATHS
        for field in dataclasses.fields(CLASSES[name])
        if field.name in which(name) and not classes_in(field) & PATHS.keys()
    ]


def digests(config: Any, path: str, value: Any) -> tuple[bytes, bytes]:
    """Before and after one change, which is taken back."""
    missing = object()
    old = getattr(at(config, path.rpartition(".")[0]), path.rpartition(".")[2], missing)
    if old is missing:
        pytest.skip("this version lacks the value")
    before = digest(config)
    put(config, path, other(old) if value is ... else value)
    try:
        return before, digest(config)
    finally:
        put(config, path, old)


def test_every_class_has_a_place(site: Any) -> None:
    assert set(COUNTING) - WHOLE <= PATHS.keys()
    for name in set(COUNTING) - WHOLE:
        assert type(at(site, PATHS[name])).__name__ == name


@pytest.mark.parametrize(("name", "field"), cases(inside))
def test_a_field_that_is_in_separates_alone(site: Any, name: str, field: str) -> None:
    path = f"{PATHS[name]}.{field}".lstrip(".")
    before, after = digests(site, path, ...)
    assert before != after


@pytest.mark.parametrize(("name", "field"), cases(reasoned))
def test_a_field_that_is_out_does_not(site: Any, name: str, field: str) -> None:
    path = f"{PATHS[name]}.{field}".lstrip(".")
    before, after = digests(site, path, ...)
    assert before == after


# How a field separates that another field of the identity stands for; a text says why it cannot
# be changed alone, or where that is tested.
SETTLED = "vLLM settles it; what the groups say counts: test_identity_fields"
ELSEWHERE: dict[str, Any] = {
    "VllmConfig.device_config": "what torch finds counts: test_identity_fields",
    "VllmConfig.kv_transfer_config": "the chunk's size and the salt: test_identity_fields",
    "VllmConfig.quant_config": "made from ModelConfig's fields and hf_config",
    "ModelConfig.model": "test_identity, test_weights",
    "ModelConfig.revision": "test_weights",
    "ModelConfig.model_weights": "s3://bucket/model",
    "ModelConfig.hf_config": "test_identity, test_identity_sides",
    "ModelConfig.hf_text_config": "a part of hf_config",
    "ModelConfig.hf_config_path": "test_identity, test_identity_sides",
    "ModelConfig.hf_overrides": "test_identity",
    "ModelConfig.config_format": "what it reads is hf_config",
    "ModelConfig.trust_remote_code": "test_model_files",
    "ModelConfig.max_model_len": "test_identity_sides",
    "ModelConfig.generation_config": "test_identity_sides",
    "ModelConfig.override_generation_config": "test_identity_sides",
    "ModelConfig.seed": "test_weights",
    "MultiModalConfig.mm_encoder_fp8_scale_path": "test_model_files",
    "CacheConfig.cache_dtype": "fp8_e5m2",
    "CacheConfig.prefix_caching_hash_algo": "sha256_cbor",
    "CacheConfig.kv_cache_layout": "test_identity_fields",
    "CacheConfig.block_size": SETTLED,
    "CacheConfig.mamba_block_size": SETTLED,
    "CacheConfig.sliding_window": SETTLED,
    "CacheConfig.mamba_page_size_padded": SETTLED,
    "CacheConfig.skip_page_size_padded": SETTLED,
    "CacheConfig.calculate_kv_scales": "test_identity_refusals",
    "ParallelConfig.pipeline_parallel_size": 2,
    "ParallelConfig.tensor_parallel_size": 2,
    "ParallelConfig.prefill_context_parallel_size": 2,
    "ParallelConfig.decode_context_parallel_size": 2,
    "ParallelConfig.world_size": 2,
    "ParallelConfig.dcp_kv_cache_interleave_size": "test_identity_sides",
    "ParallelConfig.cp_kv_cache_interleave_size": "test_identity_sides",
    "ParallelConfig._allow_auto_resolve_cp_interleave_size": "its result: test_identity_sides",
    "SchedulerConfig.disable_hybrid_kv_cache_manager": SETTLED,
    "LoadConfig.load_format": "dummy",
    "LoadConfig.model_loader_extra_config": {"pattern": "another"},
    "SpeculativeConfig.model": "test_weights",
    "SpeculativeConfig.revision": "test_weights",
}


def test_a_field_that_is_read_elsewhere_separates(site: Any) -> None:
    read = {
        f"{name}.{field}"
        for name in COUNTING
        for field in " ".join(JUDGED.get(name, Judgment()).elsewhere.values()).split()
        if field in fields_of(name)
    }
    assert read <= ELSEWHERE.keys()
    for each in read:
        value = ELSEWHERE[each]
        if isinstance(value, str) and (" " in value or value.startswith("test_")):
            continue
        name, _, field = each.partition(".")
        before, after = digests(site, f"{PATHS[name]}.{field}", value)
        assert before != after, each


def test_a_field_and_a_class_that_nobody_judged_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The safe side for a version that is newer than the tables."""

    @dataclasses.dataclass
    class NewConfig:
        knob: int = 1

    @dataclasses.dataclass
    class LoadConfig:
        load_format: str = "auto"
        device: str = "cpu"
        novelty: Any = dataclasses.field(default_factory=NewConfig)

    assert fields_in(LoadConfig()) == {"novelty": {"knob": 1}}


@pytest.mark.parametrize(
    ("given", "is_in"),
    [
        ({"VLLM_BATCH_INVARIANT": "1"}, True),
        ({"VLLM_MARLIN_INPUT_DTYPE": "fp8"}, True),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, True),
        ({"VLLM_BRAND_NEW_KERNEL": "1"}, True),
        ({"VLLM_PORT": "80"}, False),
        ({"VLLM_LOGGING_LEVEL": "DEBUG"}, False),
        ({"VLLM_SERVICE_HOST": "10.0.0.1"}, False),
        ({"HOME": "/root"}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_environment_variables(given: dict[str, str], is_in: bool) -> None:
    known = {*envs.environment_variables, "VLLM_BRAND_NEW_KERNEL"}
    assert environment_fields(known, given) == (given if is_in else {})


def test_environment_variables_separate(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(site)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert digest(site) == before
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert digest(site) != before


def test_the_walk_sees_the_classes_of_this_version() -> None:
    assert len(COUNTING) >= 18 and CLASSES["VllmConfig"] is VllmConfig
    assert Path(vllm_configs.__file__).parent.name == "config"
