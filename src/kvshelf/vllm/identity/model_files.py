"""Files beside a model's weights that shape its KV: what its processors do to pictures, how its
weights are quantized, its own code.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvshelf.errors import ConfigError
from kvshelf.weights import model_folder

# JSON files that change no KV: read another way (the model's configuration, indexes of weights),
# or used before tokens or after logits, or bookkeeping. Every other one counts.
_JSON_LEFT_OUT = (
    "config.json",
    "*.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "generation_config.json",
    "chat_template*.json",
    "configuration.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "trainer_state.json",
    "*_results.json",
    ".*",
)
_PROCESSORS = "*processor_config.json"


def file_digests(model_config: Any, load_config: Any, *, is_draft: bool = False) -> dict[str, str]:
    """The digest of each such file, by its name.

    Of a folder all files count that are not known to be harmless; of a hub's snapshot, which its
    commit names, only the processors', in case that somebody edited them in the cache.

    Args:
        is_draft: the model's configuration is not in the identity otherwise.

    Raises:
        ConfigError: a file cannot be read.
    """
    digests = {path.name: _digest(path) for path in _files(model_config, load_config, is_draft)}
    scales = getattr(model_config.multimodal_config, "mm_encoder_fp8_scale_path", None)
    if scales:
        digests["mm_encoder_fp8_scale_path"] = _digest(Path(scales))
    return dict(sorted(digests.items()))


def _files(model_config: Any, load_config: Any, is_draft: bool) -> Iterator[Path]:
    folder = model_folder(model_config, load_config)
    if folder is None:
        return
    is_local = Path(str(model_config.model)).exists()
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError("model", str(folder), f"cannot be listed: {error.strerror}") from error
    for path in paths:
        if not is_local:
            counts = fnmatch.fnmatch(path.name, _PROCESSORS)
        elif path.name.endswith(".py"):
            counts = bool(model_config.trust_remote_code)
        else:
            counts = path.name.endswith(".json") and not _is_harmless(path.name, is_draft)
        if counts:
            yield path


def _is_harmless(name: str, is_draft: bool) -> bool:
    if is_draft and name == "config.json":
        return False
    return any(fnmatch.fnmatch(name, pattern) for pattern in _JSON_LEFT_OUT)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise ConfigError("model", str(path), f"cannot be read: {error.strerror}") from error
