"""Who shares SGLang's KV: everything that decides the bytes of a page."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kvshelf.config import Settings
from kvshelf.disk.namespace import Identity
from kvshelf.errors import ConfigError
from kvshelf.sglang.compat import engine_version, hashes_know_namespaces
from kvshelf.sglang.memory import HostPages
from kvshelf.weights import Weights, model_folder, model_name, weights_of

# Server arguments that change what the model computes, or how. Absent ones are of other versions.
_ARGUMENTS = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "quantization_param_path",
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "json_model_override_args",
    "model_impl",
    "is_embedding",
    "enable_deterministic_inference",
    "torchao_config",
    "modelopt_quant",
    "rl_on_policy_target",
    "enable_double_sparsity",
    "enable_fp32_lm_head",
    "dsa_prefill_backend",
    "nsa_prefill_backend",
)
# Files beside the weights that change what a model computes.
_FILES = ("config.json", "*processor_config.json", "*quant*.json", "*.py")


def identity_of(
    storage_config: Any,
    server_args: Any,
    *,
    pool: Any,
    pages: HostPages,
    name: str,
    settings: Settings,
) -> Identity:
    """The namespace of one host pool.

    Args:
        storage_config: SGLang's HiCacheStorageConfig.
        server_args: SGLang's ServerArgs of this process.
        name: of the pool: "kv", or another one's of a hybrid model.

    Raises:
        ConfigError: nothing says which weights there are, a file cannot be read, or SGLang's page
            hashes do not tell adapters apart.
    """
    if getattr(server_args, "enable_lora", None) or getattr(server_args, "lora_paths", None):
        raise ConfigError("enable_lora", True, "kvshelf.sglang does not tell LoRA adapters apart")
    weights = _weights(server_args, settings)
    fields: dict[str, Any] = {
        "model": model_name(str(server_args.model_path)),
        "engine": f"sglang {engine_version()}",
        "hash": "sha256, namespaces" if hashes_know_namespaces() else "sha256",
        "weights": weights.name,
        "files": _digests(server_args),
        "arguments": {
            each: _plain(getattr(server_args, each))
            for each in _ARGUMENTS
            if getattr(server_args, each, None) is not None
        },
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "pool": {
            "name": name,
            "class": type(pool).__name__,
            "format": getattr(pool, "storage_format_tag", None),
            "layout": pages.layout,
            "dtype": str(getattr(pool, "dtype", "")),
            "page_tokens": pages.page_tokens,
            "layers": [getattr(pool, "start_layer", None), getattr(pool, "end_layer", None)],
            "runs": [page.page_bytes for page in pages.memory.pages],
        },
        "parallel": {
            each: getattr(storage_config, each, 1)
            for each in ("tp_size", "pp_size", "pp_rank", "attn_cp_size", "dcp_size")
        },
        "salt": settings.identity_salt,
    }
    if _is_replicated(storage_config, name):
        fields["parallel"]["tp_size"] = "any"
    return Identity(fields)


def rank_of(storage_config: Any, name: str) -> tuple[int, int]:
    """(rank, world size): whose files a pool's are, among those of this pipeline stage.

    The ranks of an MLA model have the same bytes; the first one writes them.
    """
    world = storage_config.attn_cp_size
    rank = storage_config.attn_cp_rank
    if _is_replicated(storage_config, name):
        return rank, world
    return storage_config.tp_rank * world + rank, storage_config.tp_size * world


def _is_replicated(storage_config: Any, name: str) -> bool:
    """Whether every tensor parallel rank has the same bytes: MLA's, but never a state's."""
    return storage_config.is_mla_model and name != "mamba"


def _weights(server_args: Any, settings: Settings) -> Weights:
    model = SimpleNamespace(
        model=server_args.model_path,
        revision=getattr(server_args, "revision", None),
        model_weights="",
        hf_config=None,
    )
    load = SimpleNamespace(
        load_format=str(server_args.load_format),
        download_dir=getattr(server_args, "download_dir", None),
    )
    weights = weights_of(model, load, settings)
    if not weights.are_known and not settings.identity_salt:
        raise ConfigError(
            "identity_salt",
            "",
            f"no file says which weights load_format={server_args.load_format} gives "
            f"{server_args.model_path}: name them by identity_salt, another for other weights",
        )
    return weights


def _digests(server_args: Any) -> dict[str, str]:
    folder = model_folder(
        SimpleNamespace(
            model=server_args.model_path,
            revision=getattr(server_args, "revision", None),
            hf_config=None,
        ),
        SimpleNamespace(download_dir=getattr(server_args, "download_dir", None)),
    )
    try:
        return {path.name: _digest(path) for path in _files(folder)}
    except OSError as error:
        raise ConfigError("model_path", str(folder), f"cannot be read: {error}") from error


def _files(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        for path in sorted(folder.iterdir()):
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in _FILES) and path.is_file():
                yield path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | str) else str(value)
