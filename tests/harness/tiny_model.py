"""Makes the model that the demo and the end-to-end tests serve: no download, the same every time.

A Llama of 4 layers with random weights. Two choices make wrong KV bytes visible, which random
weights would otherwise hide by repeating one token whatever the prompt says:

- weights are drawn wider than a trained model's, so that attention picks few positions and the
  answer depends on what they hold;
- float32, so that a recomputed prefix differs in the last bits only (about 1e-6 in a logprob)
  while a damaged chunk moves logprobs by orders of magnitude more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

MAX_TOKENS = 8192
VOCABULARY = 512  # 256 bytes, two specials, and spare rows
WEIGHT_SCALE = 0.08  # a trained Llama's initializer_range is 0.02
QUERY_KEY_SCALE = 0.20  # sharper attention: see the module's docstring
DEFAULT_SEED = 20


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, and nothing learned."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    vocabulary["<s>"] = len(vocabulary)
    vocabulary["</s>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=MAX_TOKENS,
    )


def make_model(seed: int) -> LlamaForCausalLM:
    """The model itself. Another ``seed`` gives the same shape with other weights."""
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() < 2:  # norms stay at one
                continue
            scale = QUERY_KEY_SCALE if "q_proj" in name or "k_proj" in name else WEIGHT_SCALE
            weight.normal_(0.0, scale, generator=generator)
    return model


def make_tiny_model(directory: Path, seed: int = DEFAULT_SEED) -> Path:
    """Write model and tokenizer into ``directory`` (made if absent) and return it."""
    logging.disable_progress_bar()
    directory.mkdir(parents=True, exist_ok=True)
    make_model(seed).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


if __name__ == "__main__":
    made = make_tiny_model(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else DEFAULT_SEED)
    sys.stdout.write(f"{made}\n")
