"""Makes LoRA adapters for the tiny model, as PEFT would save them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, KEYS, RANK = 4, 256, 128, 8


def make_adapter(folder: Path, seed: int) -> Path:
    """Another ``seed`` gives another adapter of the same shape. Written over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, outputs in (("q_proj", HIDDEN), ("v_proj", KEYS)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator) * 0.3
            tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.3
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
