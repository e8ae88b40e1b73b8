"""Why two replicas do not share: what each identity field that differs means, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from kvshelf.namespace import FieldDifference

# First match counts: field or its first parts -> what it is, what makes it equal.
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("format", "version of chunk files", "the same kvshelf on both"),
    ("engine", "vLLM's minor version: KV layouts may change with it", "the same vLLM on both"),
    ("model_config", "the model's configuration, overrides included", "the same --hf-overrides"),
    ("context", "the longest context: this model's keys depend on it", "the same --max-model-len"),
    ("model", "the model's name", "the same model, under one name"),
    ("weights", "another revision, fine-tuning or quantised copy", "the same --revision"),
    ("quantization", "how weights are quantised", "the same --quantization"),
    ("dtype", "the type of activations", "the same --dtype"),
    ("cache_dtype_skip_layers", "layers kept in another type", "the same cache settings"),
    ("cache_dtype", "the type of the KV cache", "the same --kv-cache-dtype"),
    ("calculate_kv_scales", "scales computed at run time", "the same --calculate-kv-scales"),
    ("kv_cache_layout", "order of a block's bytes", "the same VLLM_KV_CACHE_LAYOUT and connectors"),
    ("attention", "attention backend, which lays out blocks", "the same --attention-backend"),
    ("device", "kind of processor or GPU", "nodes of one kind, or a shelf for each kind"),
    ("block_tokens", "tokens of a block", "the same --block-size"),
    ("chunk", "blocks of a chunk", "the same block_size in the connector's configuration"),
    ("groups", "KV cache groups: layers, heads, page sizes", "the same model and parallel sizes"),
    ("parallel", "parallel sizes: each rank stores another part", "the same parallel sizes"),
    ("hash.seed", "seed of block hashes", "PYTHONHASHSEED=0 on both"),
    ("hash", "hash function of blocks", "the same --prefix-caching-hash-algo"),
    ("lora", "LoRA settings", "the same --max-lora-rank"),
    ("speculative", "speculative decoding", "the same --speculative-config"),
    ("mamba", "state of Mamba layers", "the same Mamba cache settings"),
    ("salt", "identity_salt in the connector's configuration", "the same, or none"),
    ("auth_key", "the key of auth_key_file, by its name", "the same key file, or none, on both"),
)


@dataclass(frozen=True, slots=True)
class Reason:
    """A difference, explained. ``meaning`` is "" for a field of another program or version."""

    difference: FieldDifference
    meaning: str
    remedy: str


def explain(differences: list[FieldDifference]) -> list[Reason]:
    """One reason a difference, in the same order."""
    return [Reason(difference, *_reason(difference.field)) for difference in differences]


def _reason(field: str) -> tuple[str, str]:
    for name, meaning, remedy in _REASONS:
        if field == name or field.startswith(f"{name}."):
            return meaning, remedy
    return "", ""


def known_fields() -> frozenset[str]:
    """Top-level identity fields that are explained."""
    return frozenset(name.partition(".")[0] for name, _, _ in _REASONS)
