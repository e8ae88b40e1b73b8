"""A model that is a function: what it writes to KV memory, and what it answers.

A token's slot holds a digest of the token and of the slot before it, as it lies in memory. So a
right slot is a function of the tokens up to it, and a wrong byte spreads as in a real model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvshelf.vllm.worker import worker_weights

BLOCK = 32  # tokens
VOCABULARY = 512


def state_after(state: bytes, token: int) -> bytes:
    """What the model writes to the slot of a token that follows a slot: 8 bytes."""
    return hashlib.blake2b(state + token.to_bytes(4, "little"), digest_size=8).digest()


def token_after(state: bytes) -> int:
    """What the model answers to a slot; never 0, which a test may use as a stop token."""
    return 1 + int.from_bytes(state, "little") % (VOCABULARY - 1)


def states_of(tokens: Sequence[int], seed: bytes = b"") -> list[bytes]:
    """The right slots of these tokens. ``seed``: what the model's weights are."""
    found, state = [], seed
    for token in tokens:
        state = state_after(state, token)
        found.append(state)
    return found


def answer_to(prompt: Sequence[int], count: int, seed: bytes = b"") -> list[int]:
    """The right answer of so many tokens."""
    state, answer = states_of(prompt, seed)[-1], []
    for _ in range(count):
        answer.append(token_after(state))
        state = state_after(state, answer[-1])
    return answer


def prompt_of(length: int, start: int = 0) -> list[int]:
    """A prompt that no other ``start`` shares a block with."""
    digest = hashlib.blake2b(start.to_bytes(8, "little"), digest_size=64).digest()
    return [1 + (digest[i % 64] + i) % (VOCABULARY - 1) for i in range(length)]


@dataclass
class Running:
    """A request as the model runner knows it."""

    tokens: list[int]
    blocks: tuple[list[int], ...]
    drafts: list[int] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)  # right slots of the first tokens


class Runner:
    """KV memory and the requests in it, as vLLM's model runner keeps them.

    Args:
        layers: names of each KV cache group's layers.
        blocks: of KV memory.
        page_bytes: of a layer's block.
        seed: the model's weights.
    """

    def __init__(
        self, layers: Sequence[Sequence[str]], blocks: int, page_bytes: int, seed: bytes
    ) -> None:
        self.layers, self.seed = [list(names) for names in layers], seed
        self.caches = {
            name: torch.zeros(blocks, page_bytes // 4, dtype=torch.float32)
            for names in layers
            for name in names
        }
        self._slots = {
            name: tensor.numpy().view(np.uint8).reshape(blocks, BLOCK, -1)
            for name, tensor in self.caches.items()
        }
        self.running: dict[str, Running] = {}
        self.cached: dict[str, int] = {}  # tokens of a request that were not computed
        self.wrong: list[str] = []

    def learn(self, output: Any, requests: dict[str, Any]) -> None:
        """Take in what the scheduler says of requests."""
        for name in output.finished_req_ids:
            self.running.pop(name, None)
        for new in output.scheduled_new_reqs:
            self.cached[new.req_id] = int(new.num_computed_tokens)
            self.running[new.req_id] = Running(
                list(requests[new.req_id].all_token_ids),
                tuple(list(ids) for ids in new.block_ids),
            )
        cached = output.scheduled_cached_reqs
        for name, ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            running = self.running[name]
            if name in cached.resumed_req_ids:
                running.blocks = tuple(list(group) for group in ids)
                running.tokens = list(requests[name].all_token_ids)
            elif ids is not None:
                for own, more in zip(running.blocks, ids, strict=True):
                    own.extend(more)

    def forward(self, name: str, output: Any) -> list[int]:
        """Compute one request's tokens of this step; the tokens that it answers."""
        running = self.running[name]
        count = output.num_scheduled_tokens[name]
        # -1 stands for a draft that there is none of; the model never answers 0.
        drafts = [max(0, t) for t in output.scheduled_spec_decode_tokens.get(name, ())]
        start = self._computed(name, output)
        known = len(running.tokens)
        inputs = (running.tokens + drafts)[: start + count]
        assert len(inputs) == start + count, (name, start, count, known)
        if start:
            self._check_context(name, running, start)
        states = [self._slot(running, start - 1)] if start else [self.seed]
        for position in range(start, start + count):
            states.append(state_after(states[-1], inputs[position]))
            self._write(running, position, states[-1])
        if start + count < known:
            return []  # a part of the prompt
        answered: list[int] = []
        for position in range(known - 1, start + count):
            answered.append(token_after(states[position - start + 1]))
            if position + 1 < start + count and inputs[position + 1] != answered[-1]:
                break
        running.tokens += answered
        return answered

    def _computed(self, name: str, output: Any) -> int:
        for new in output.scheduled_new_reqs:
            if new.req_id == name:
                return int(new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        return int(cached.num_computed_tokens[cached.req_ids.index(name)])

    def _check_context(self, name: str, running: Running, end: int) -> None:
        known = running.states
        for token in running.tokens[len(known) : end]:
            known.append(state_after(known[-1] if known else self.seed, token))
        positions = np.arange(end)
        right = np.frombuffer(b"".join(known[:end]), np.uint8).reshape(end, 1, 8)
        for i, layer in enumerate(self.layers[0]):
            rows = np.array(running.blocks[0])[positions // BLOCK]
            slots = self._slots[layer][rows, positions % BLOCK].reshape(end, -1, 8)
            wrong = np.nonzero((slots != right ^ np.uint8(i)).any(axis=(1, 2)))[0]
            if len(wrong):
                self.wrong.append(f"{name} reads a wrong slot {wrong[0]} of {end}")
                return

    def _slot(self, running: Running, position: int) -> bytes:
        """The slot in the first layer, or what no token ever is if layers disagree."""
        values = set()
        for layers, blocks in zip(self.layers[:1], running.blocks, strict=False):
            row, slot = blocks[position // BLOCK], position % BLOCK
            for i, layer in enumerate(layers):
                values.add(unmark(self._slots[layer][row, slot], i))
        return values.pop() if len(values) == 1 else b"layers disagree"

    def _write(self, running: Running, position: int, state: bytes) -> None:
        for layers, blocks in zip(self.layers, running.blocks, strict=True):
            row, slot = blocks[position // BLOCK], position % BLOCK
            if row == 0:
                continue  # outside a sliding window
            for i, layer in enumerate(layers):
                target = self._slots[layer][row, slot]
                target[:] = mark(state, i, len(target))

    def write(self, blocks: Sequence[int], tokens: Sequence[int]) -> None:
        """Write the right slots of these tokens, as another connector's load does."""
        running = Running(list(tokens), tuple(list(blocks) for _ in self.layers))
        for position, state in enumerate(states_of(tokens, self.seed)):
            self._write(running, position, state)


def mark(state: bytes, layer: int, length: int) -> NDArray[np.uint8]:
    return np.resize(np.frombuffer(state, np.uint8) ^ np.uint8(layer), length)


def unmark(slot: NDArray[np.uint8], layer: int) -> bytes:
    state = bytes(slot[:8] ^ np.uint8(layer))
    return state if np.array_equal(slot, mark(state, layer, len(slot))) else b"torn"


class Executor:
    """vLLM's executor as far as kvshelf asks workers for their weights: those of ``seed``."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed

    def collective_rpc(self, function: Any) -> list[Any]:
        if function is worker_weights.read_weights:
            digest = hashlib.blake2b(self.seed, digest_size=32).hexdigest()
            return [worker_weights.WeightsRead(digest=digest, seconds=0.0, fault="", adapters={})]
        return [{}] if function is worker_weights.read_adapters else [None]
