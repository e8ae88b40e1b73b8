"""Which weights an engine has: content that cannot miss a changed row, or the word "in memory".

Files of a folder are hashed whole (``files``); a hub's model is named by the
commit of its snapshot, which is content. Where the files do not say what a loader puts into memory
(dummy weights, object stores, loaders of others), nothing is guessed: ``IN_MEMORY``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvshelf.config import Settings
from kvshelf.errors import ConfigError
from kvshelf.weights.files import digest_of_files

IN_MEMORY = "in memory"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")

# Loaders of vLLM that read nothing but the files of the model's folder. npcache is not one: it
# prefers files that it wrote earlier. Loaders that stream from elsewhere are not either.
_FILE_LOADERS = frozenset(
    {
        "auto",
        "bitsandbytes",
        "fastsafetensors",
        "gguf",
        "hf",
        "instanttensor",
        "mistral",
        "pt",
        "safetensors",
        "sharded_state",
    }
)
# Loaders that take only some of a folder's files by a rule of their own.
_CHOOSY_LOADERS = frozenset({"bitsandbytes", "sharded_state"})
# A trainer's files, which no loader reads.
_NOT_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
)
# Folders beside the weights that no loader enters: checkpoints of a training that goes on (each
# with the state of an optimizer, twice the model's size), and Llama's original format.
_NOT_ENTERED = re.compile(r"checkpoint-\d+|global_step\d+|original|\..*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Weights:
    """Attributes:
    name: equal only for equal weights, or ``IN_MEMORY``.
    how: what was done to know it, for the log.
    """

    name: str
    how: str

    @property
    def are_known(self) -> bool:
        return self.name != IN_MEMORY


def weights_of(model_config: Any, load_config: Any, settings: Settings) -> Weights:
    """Name the weights that an engine with these configurations has loaded.

    Raises:
        ConfigError: a file is missing, unreadable, or changes meanwhile.
    """
    source = _source(model_config, load_config)
    if isinstance(source, str):
        return Weights(source, source)
    digest = digest_of_files(source, settings)
    return Weights(f"blake3:{digest.hex}:{_chosen(source, load_config)}", digest.how)


def weights_are_known(vllm_config: Any) -> bool:
    """Whether files say what weights the engine has, its draft model's included.

    Reads names of files, never their content. False: the identity says ``IN_MEMORY``, and only
    digests of the weights in memory can tell two engines apart.
    """
    pairs = [(vllm_config.model_config, vllm_config.load_config), *draft_of(vllm_config)]
    return all(_source(model, load) != IN_MEMORY for model, load in pairs)


def draft_of(vllm_config: Any) -> Iterator[tuple[Any, Any]]:
    """The configurations of a draft model with weights of its own, if there is one."""
    config, target = vllm_config.speculative_config, vllm_config.model_config
    draft = getattr(config, "draft_model_config", None)
    if draft is not None and (draft.model, draft.revision) != (target.model, target.revision):
        yield draft, getattr(config, "draft_load_config", None) or vllm_config.load_config


def load_format_of(load_config: Any) -> str:
    return str(getattr(load_config, "load_format", "auto")).rsplit(".", 1)[-1].lower()


def model_name(model: str) -> str:
    """The name without the place: a local directory's last part, a hub name as it is."""
    path = Path(model)
    return path.resolve().name if path.is_absolute() or path.exists() else model


def model_folder(model_config: Any, load_config: Any) -> Path | None:
    """Where a model's files are: its own folder, or its snapshot in a hub's cache."""
    path = Path(str(model_config.model))
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    return _snapshot(model_config, load_config)


def _source(model_config: Any, load_config: Any) -> list[tuple[str, Path]] | str:
    """The weight files with their names, or the weights' name if there are none to hash."""
    if load_format_of(load_config) not in _FILE_LOADERS:
        return IN_MEMORY
    if getattr(model_config, "model_weights", ""):  # an object store's; the folder has no weights
        return IN_MEMORY
    path = Path(str(model_config.model))
    if path.is_dir():
        return _files_of(path) or IN_MEMORY
    if path.is_file():
        return [(path.name, path)]
    snapshot = _snapshot(model_config, load_config)
    return IN_MEMORY if snapshot is None else f"hub:{snapshot.name}"


def _chosen(files: list[tuple[str, Path]], load_config: Any) -> str:
    """Which of the files are loaded: their kind if all are of one, else the loader decides.

    So ``auto`` and ``safetensors`` are equal where they load the same, and differ in a folder that
    has two sets of weights.
    """
    load_format = load_format_of(load_config)
    kinds = {_kind(name) for name, _ in files if not name.endswith(".json")}
    if len(kinds) == 1 and load_format not in _CHOOSY_LOADERS:
        return kinds.pop()
    return load_format


def _kind(name: str) -> str:
    consolidated = name.rsplit("/", 1)[-1].startswith("consolidated")
    return f"{'consolidated' if consolidated else ''}{Path(name).suffix}".lstrip(".")


def _files_of(folder: Path) -> list[tuple[str, Path]]:
    """All files that a loader could read, and the indexes that choose among them, by name.

    Raises:
        ConfigError: the folder cannot be listed, or a file that an index names is missing.
    """
    found: list[tuple[str, Path]] = []
    seen: set[tuple[int, int]] = set()
    for base, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        status = Path(base).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not _NOT_ENTERED.fullmatch(f))
        for name in names:
            path = Path(base) / name
            if _is_weights(name):
                found.append((path.relative_to(folder).as_posix(), path))
    indexes = sorted(folder.glob("*.index.json")) if found else []
    for index in indexes:
        _check_index(index)
    return sorted([*found, *((index.name, index) for index in indexes)])


def _is_weights(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) and name not in _NOT_WEIGHTS and name[0] != "."


def _unreadable(error: OSError) -> None:
    raise ConfigError("model", error.filename, f"cannot be listed: {error.strerror}") from error


def _check_index(index: Path) -> None:
    """An index of another format than the files that are there chooses nothing."""
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        missing = sorted(shard for shard in shards if not (index.parent / shard).exists())
    except OSError as error:
        raise ConfigError("model", str(index), f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("model", str(index), "is no index of weight files") from error
    if missing and len(missing) < len(shards):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            "model", str(index.parent), f"the weight file {missing[0]}{others} is missing"
        )


def _snapshot(model_config: Any, load_config: Any) -> Path | None:
    """The folder of a hub's commit in the local cache, from which vLLM has loaded.

    None if that is not certain: no such folder, a name that no hub has, another hub, or a
    configuration of another commit (somebody moved the branch between two reads).
    """
    if os.environ.get("VLLM_USE_MODELSCOPE", "0").strip().lower() in ("1", "true"):
        return None
    from huggingface_hub import constants, errors, file_download  # noqa: PLC0415 - vLLM's
    from huggingface_hub.utils import _validators  # noqa: PLC0415

    model, revision = str(model_config.model), model_config.revision or "main"
    try:
        _validators.validate_repo_id(model)
    except errors.HFValidationError:
        return None
    cache = getattr(load_config, "download_dir", None) or constants.HF_HUB_CACHE
    folder = Path(cache) / file_download.repo_folder_name(repo_id=model, repo_type="model")
    try:
        is_commit = _COMMIT.fullmatch(revision)
        commit = revision if is_commit else (folder / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        return None
    read = getattr(getattr(model_config, "hf_config", None), "_commit_hash", None)
    if not _COMMIT.fullmatch(commit) or (read and read != commit):
        return None
    path = folder / "snapshots" / commit
    return path if path.is_dir() else None
