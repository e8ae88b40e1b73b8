"""What trainers do to the weights of a running engine: functions for ``LLM.collective_rpc``.

Each takes vLLM's worker. They run in the workers' processes.
"""

from __future__ import annotations

from typing import Any


def reload(worker: Any, path: str) -> None:
    """All weights, from another checkpoint, as vLLM's own ``reload_weights`` does."""
    worker.model_runner.reload_weights(weights_path=path)


def nothing(worker: Any) -> None:
    """An RPC that changes nothing."""
    del worker


def set_rows(worker: Any, rows: int, factor: float) -> None:
    """The first rows of the embedding, in place, as a trainer writes over IPC."""
    weight = worker.model_runner.get_model().model.embed_tokens.weight
    weight.data[:rows] *= factor


def reload_one(worker: Any, path: str, name: str) -> None:
    """One tensor of another checkpoint: a partial update."""
    from safetensors.torch import load_file

    tensor = load_file(f"{path}/model.safetensors")[name]
    worker.model_runner.reload_weights(weights_iterator=[(name, tensor)])
