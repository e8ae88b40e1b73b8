"""Why two replicas do not share: what each identity field that differs means, and what to do.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvshelf.disk.namespace import FieldDifference

# First match counts: field or its first parts -> what it is, what makes it equal.
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("format", "version of chunk files and of identities", "the same kvshelf on both"),
    ("engine", "vLLM's minor version: KV layouts may change with it", "the same vLLM on both"),
    ("hf_config", "the model's configuration, overrides included", "the same --hf-overrides"),
    ("context", "the longest context: this model's keys depend on it", "the same --max-model-len"),
    ("model", "the model's name", "the same model, under one name"),
    (
        "weights",
        "another revision, fine-tuning or quantized copy; 'in memory': no file says what is loaded",
        "the same --revision or files",
    ),
    ("load", "what the loader is told to load", "the same --model-loader-extra-config"),
    ("files", "a file beside the weights: processors, quantization, code", "the same files"),
    ("model_config.dtype", "the type of activations", "the same --dtype"),
    ("model_config.quantization", "how weights are quantized", "the same --quantization"),
    (
        "model_config.quantization_config",
        "how weights are quantized",
        "the same --quantization-config",
    ),
    (
        "model_config.multimodal_config",
        "what becomes of pictures, sound and video",
        "the same --mm-... options",
    ),
    ("model_config", "how vLLM runs the model", "the same model options"),
    ("cache_config", "how KV and states are kept", "the same cache options"),
    ("cache_dtype", "the type of the KV cache", "the same --kv-cache-dtype"),
    ("kv_cache_layout", "order of a block's bytes", "the same VLLM_KV_CACHE_LAYOUT and connectors"),
    (
        "attention_config",
        "attention kernels",
        "the same --attention-backend and --attention-config",
    ),
    ("kernel_config", "kernels of layers", "the same --kernel-config, --moe-backend and the like"),
    ("mamba_config", "kernels of state layers", "the same --mamba-... options"),
    (
        "compilation_config",
        "compiled and eager kernels round otherwise",
        "the same --enforce-eager and --compilation-config",
    ),
    ("environment", "an environment variable that chooses kernels", "the same VLLM_ variables"),
    ("additional_config", "options of a platform's plugin", "the same --additional-config"),
    ("diffusion_config", "how a diffusion model fills its canvas", "the same diffusion options"),
    ("load_config", "which files are loaded", "the same --ignore-patterns"),
    ("scheduler_config", "a scheduler class of your own", "the same --scheduler-cls"),
    (
        "device",
        "kind of processor or GPU: its kernels may lay out or round KV otherwise",
        "nodes of one kind, or a shelf for each kind",
    ),
    ("block_tokens", "tokens of a block", "the same --block-size"),
    ("chunk", "blocks of a chunk", "the same block_size in the connector's configuration"),
    ("groups", "KV cache groups: layers, heads, page sizes", "the same model and parallel sizes"),
    (
        "parallel",
        "parallel sizes: each rank stores another part",
        "the same parallel sizes, or a tier with canonical_layout, which all tensor parallel sizes "
        "share",
    ),
    (
        "tier",
        "a tier keeps rows of vLLM's host memory, all ranks' bytes in one file; the direct path "
        "keeps blocks of GPU memory, a file a rank",
        "one of the two on both; tiers with equal layout and row_bytes",
    ),
    ("parallel_config", "how ranks share a layer's work", "the same parallel options"),
    (
        "hash.seed",
        "seed of block hashes, so of keys",
        "the same PYTHONHASHSEED, or none on both",
    ),
    ("hash", "hash function of blocks, so of keys", "the same --prefix-caching-hash-algo"),
    ("lora_config", "LoRA options", "the same LoRA options"),
    ("speculative_config", "speculative decoding", "the same --speculative-config"),
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
