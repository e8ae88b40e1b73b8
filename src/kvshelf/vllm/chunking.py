"""How many blocks a chunk has, settled before vLLM reads the configuration.

    block_size (tokens) or blocks_per_chunk (blocks), as a user wrote them -> blocks_per_chunk

vLLM takes ``block_size`` only when all KV cache groups have equal blocks and the size is a multiple
of them. Hybrid models have neither, so the size is converted here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config

from kvshelf.errors import ConfigError
from kvshelf.vllm import compat

logger = compat.logger_of(__name__)

TOKENS, BLOCKS = "block_size", "blocks_per_chunk"
# llm-d's default: 256 tokens are 33.6 MB of an 8B model's KV, large enough for full disk speed.
DEFAULT_CHUNK_TOKENS = 256
# More than any model's context: a larger number is a mistake.
_MOST = {TOKENS: 100_000_000, BLOCKS: 1_000_000}
# The size that was converted: the scheduler tells it, also if a worker in its process was first.
_ASKED_KEY = "kvshelf.block_size"


def default_chunk(extra: dict[str, Any]) -> None:
    """Give a configuration that says no chunk size ours."""
    if extra.get(TOKENS) is None and extra.get(BLOCKS) is None:
        extra[TOKENS] = DEFAULT_CHUNK_TOKENS


def settle_chunk(vllm_config: Any, kv_cache_config: Any, *, tell: bool) -> None:
    """Replace ``block_size`` by ``blocks_per_chunk``: the most whole blocks that fit into that many
    tokens in every group that vLLM offloads, and at least one. Without either: one block.

    The processes of an engine settle it alike, for they know the same groups. A second call finds
    what the first one left.

    Args:
        tell: whether to log what a user may not expect; the scheduler's side does.

    Raises:
        ConfigError: both are given, one is malformed, or vLLM cannot offload this model's KV cache.
    """
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    given = {name: extra[name] for name in (TOKENS, BLOCKS) if extra.get(name) is not None}
    if len(given) == 2:
        raise ConfigError(BLOCKS, given[BLOCKS], f"not together with {TOKENS}={given[TOKENS]!r}")
    sizes = {name: _whole_number(name, value) for name, value in given.items()}
    group_tokens = offloaded_block_tokens(vllm_config, kv_cache_config)
    blocks = sizes.get(BLOCKS, 1)
    if TOKENS in sizes:
        blocks = max(1, sizes[TOKENS] // max(group_tokens))
        if any(blocks * tokens != sizes[TOKENS] for tokens in group_tokens):
            extra[_ASKED_KEY] = sizes[TOKENS]
    extra.pop(TOKENS, None)
    extra[BLOCKS] = blocks
    if tell:
        _tell(extra.get(_ASKED_KEY), blocks, group_tokens, vllm_config.model_config.max_model_len)


def offloaded_block_tokens(vllm_config: Any, kv_cache_config: Any) -> tuple[int, ...]:
    """Tokens of a block in each group that vLLM offloads, context parallelism included.

    vLLM's own answer, for which groups it offloads and how context parallelism widens their blocks
    differs: 0.26 to 0.29 widen all groups, later versions those whose tokens it shards.

    Raises:
        ConfigError: vLLM cannot offload this KV cache.
    """
    transfer = copy.copy(vllm_config.kv_transfer_config)
    extra = transfer.kv_connector_extra_config
    transfer.kv_connector_extra_config = {
        k: v for k, v in extra.items() if k not in (TOKENS, BLOCKS)
    }
    config = copy.copy(vllm_config)
    config.kv_transfer_config = transfer
    try:
        groups = build_offloading_config(config, kv_cache_config).groups
        if not groups:
            raise ValueError("it has no KV cache group")
    except (AssertionError, ValueError) as error:
        problem = f"vLLM cannot offload the KV cache of this model: {error}"
        raise ConfigError("kv_connector", transfer.kv_connector, problem) from error
    return tuple(group.tokens_per_block for group in groups)


def _tell(asked: int | None, blocks: int, group_tokens: Sequence[int], longest: int) -> None:
    chunk_tokens = [blocks * tokens for tokens in group_tokens]
    if asked is not None:
        logger.info(
            "kvshelf: %s=%d becomes %s=%d: the KV cache groups have blocks of %s tokens, so their "
            "chunks have %s tokens",
            TOKENS,
            asked,
            BLOCKS,
            blocks,
            _joined(group_tokens),
            _joined(chunk_tokens),
        )
    if max(chunk_tokens) > longest:
        logger.warning(
            "kvshelf stores nothing: no request fills a chunk of %d tokens, for max_model_len is "
            "%d. Set a smaller %s.",
            max(chunk_tokens),
            longest,
            TOKENS,
        )


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))


def _whole_number(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise ValueError
        is_whole_float = isinstance(value, float) and value.is_integer()
        number = int(value) if is_whole_float else int(str(value).strip())
        if not 1 <= number <= _MOST[name]:
            raise ValueError
    except ValueError:
        allowed = f"a whole number from 1 to {_MOST[name]:,}"
        raise ConfigError(name, value, allowed) from None
    return number
