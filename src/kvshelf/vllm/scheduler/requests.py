"""Which requests kvshelf leaves alone: those whose KV is no function of what vLLM hashes.

A key stands for everything that vLLM puts into a block's hash. A request whose KV depends on
anything else would store bytes under a key that another request asks for. Such a request looks
nothing up and stores nothing; vLLM computes it, and a counter says how many there are and why.
"""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import dataclass
from typing import Any

from vllm.pooling_params import PoolingParams
from vllm.v1.request import Request

from kvshelf import metrics
from kvshelf.vllm.bounded import drop_oldest
from kvshelf.vllm.stats import StatsSink

# vLLM offers the last chunks of a request after the request has ended: one or two steps later on
# the direct path, later from the host memory of a tier. Its id is kept until then.
ENDED_MAX = 65_536

# What vLLM's Request takes (0.26 to 0.33), and why it may differ between requests of one key:
# its tokens, adapter, salt, pictures and embeddings are in the hash; the adapter's content is the
# manager's business; the rest decides what is sampled, pooled, reported or scheduled.
_INPUTS = """
    abort_immediately arrival_time block_hasher cache_salt client_index kv_hints lora_request
    mm_features pooling_params priority prompt_embeds prompt_is_token_ids prompt_token_ids
    reasoning_ended reasoning_parser_kwargs request_id resumable sampling_params session_id
    trace_headers"""
JUDGED_INPUTS = frozenset(_INPUTS.split())
# Likewise of vLLM's PoolingParams; ``extra_kwargs`` carries token types, which are inputs.
_POOLING = """
    dimensions extra_kwargs late_chunking_params late_interaction_params output_kind
    requires_token_ids returned_token_ids skip_reading_prefix_cache step_tag_id task
    use_activation"""
JUDGED_POOLING = frozenset(_POOLING.split())

STREAMING_INPUT = "streaming_input"
REMOTE_PREFILL = "remote_prefill"
REMOTE_ENCODER = "remote_encoder"
COUNTED_MEDIA = "media_without_content_hash"
MIXED_EMBEDS = "prompt_embeds_among_tokens"
POOLING_INPUT = "pooling_extra_kwargs"
UNKNOWN_INPUT = "unknown_input"
# Of a request whose adapter's content the workers could not tell, or that changed while vLLM's
# prefix cache may hold KV of the adapter before (kvshelf.vllm.adapters).
ADAPTER_UNKNOWN = "adapter_unknown"
# Of a request whose KV another connector has loaded (kvshelf.vllm.multi).
OTHER_CONNECTOR = "loaded_by_another_connector"

_HEX = re.compile(r"(?:^|:)[0-9a-f]{32,}$")


@dataclass(frozen=True, slots=True)
class Hashing:
    """What vLLM's block hashes cover in this engine, as far as engines and versions differ in it.

    Attributes:
        names_media: whether vLLM hashes the content of media. It does not with prefix caching and
            the processor's cache both off: an item without a user's UUID gets a counter for a name.
        has_remote_encoder: whether pictures may be encoded by another engine.
        inputs: names of what a request may carry that nobody has judged, in a vLLM that is newer or
            changed.
        pooling: likewise of pooling parameters.
    """

    names_media: bool = True
    has_remote_encoder: bool = False
    inputs: tuple[str, ...] = ()
    pooling: tuple[str, ...] = ()

    @classmethod
    def of(cls, vllm_config: Any) -> Hashing:
        media = getattr(vllm_config.model_config, "multimodal_config", None)
        cache_gb = getattr(media, "mm_processor_cache_gb", 0)
        inputs, pooling = request_inputs(), pooling_inputs()
        return cls(
            names_media=bool(cache_gb or vllm_config.cache_config.enable_prefix_caching),
            has_remote_encoder=getattr(vllm_config, "ec_transfer_config", None) is not None,
            inputs=tuple(sorted(inputs - JUDGED_INPUTS)),
            pooling=tuple(sorted(pooling - JUDGED_POOLING)),
        )


def reason_to_leave_alone(hashing: Hashing, request: Any) -> str | None:
    """Why this request's KV is no function of its block hashes; None if it is one.

    The reason is a label of ``kvshelf:requests_left_alone``.
    """
    if _has_unknown_input(hashing, request):
        return UNKNOWN_INPUT
    return _input_reason(request) or _media_reason(hashing, request)


def _input_reason(request: Any) -> str | None:
    if request.resumable:  # vLLM replaces its tokens later; keys of the old ones would stay
        return STREAMING_INPUT
    if (request.kv_transfer_params or {}).get("do_remote_prefill"):
        return REMOTE_PREFILL  # another engine computes its KV, with weights that are not known
    mask = request.prompt_is_token_ids
    if mask is not None and any(mask):  # the mask is in no hash
        return MIXED_EMBEDS
    if request.pooling_params is not None and request.pooling_params.extra_kwargs:
        return POOLING_INPUT
    return None


def _media_reason(hashing: Hashing, request: Any) -> str | None:
    if request.mm_features:
        if hashing.has_remote_encoder or getattr(request, "ec_transfer_params", None):
            return REMOTE_ENCODER
        if any(_is_counted(hashing, feature) for feature in request.mm_features):
            return COUNTED_MEDIA
    return None


def _has_unknown_input(hashing: Hashing, request: Any) -> bool:
    if not is_vllms_request(request):
        return True  # another class: a fork's, with inputs of its own
    if any(getattr(request, name, None) for name in hashing.inputs):
        return True
    pooling = request.pooling_params
    return pooling is not None and any(getattr(pooling, name, None) for name in hashing.pooling)


def _is_counted(hashing: Hashing, feature: Any) -> bool:
    """Whether an item's name may be a counter: "<request>-<modality>-<index>".

    Where content is not hashed, a digest may be one of such a counter and of the processor's
    options, so only what looks like neither is a user's UUID. vLLM before 0.30 replaces these too.
    """
    name = feature.identifier
    if re.search(rf"-{re.escape(feature.modality)}-\d+$", name):
        return True
    return not hashing.names_media and (_HEX.search(name) is not None)


def request_inputs() -> frozenset[str]:
    """What vLLM's Request takes: each version's own parameters."""
    return frozenset(inspect.signature(Request.__init__).parameters) - {"self"}


def pooling_inputs() -> frozenset[str]:
    """The fields of vLLM's PoolingParams."""
    return frozenset(PoolingParams.__struct_fields__)


def is_vllms_request(request: Any) -> bool:
    """Whether a request is of vLLM's own class, not of one that a fork derives from it."""
    return type(request) is Request


class LeftAlone:
    """Ids of the requests that are left alone, until vLLM asks no more about them.

    Attributes:
        loads: whether this engine loads at all.
        stores: whether it stores at all.
    """

    def __init__(self, stats: StatsSink, logger: logging.Logger) -> None:
        self.loads = self.stores = True
        self._stats, self._logger = stats, logger
        self._alive: set[str] = set()
        self._ended: dict[str, None] = {}
        self._reasons: set[str] = set()  # logged so far

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._alive or req_id in self._ended

    def may_load(self, req_id: str) -> bool:
        return self.loads and req_id not in self

    def may_store(self, req_id: str) -> bool:
        return self.stores and req_id not in self

    def add(self, req_id: str, reason: str) -> None:
        if req_id in self._alive:
            return
        self._alive.add(req_id)
        self._stats.count(metrics.REQUESTS_LEFT_ALONE, reason)
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._logger.warning(
                "kvshelf leaves requests alone: %s. vLLM computes request %s and all later ones "
                "of this kind; nothing of them is loaded or stored "
                "(docs/howto/share-and-why-not.md).",
                reason,
                req_id,
            )

    def begins(self, req_id: str) -> None:
        """Forget an earlier request of this id."""
        self._alive.discard(req_id)
        self._ended.pop(req_id, None)

    def ends(self, req_id: str) -> None:
        if req_id in self._alive:
            self._alive.remove(req_id)
            self._ended[req_id] = None
            drop_oldest(self._ended, ENDED_MAX)
