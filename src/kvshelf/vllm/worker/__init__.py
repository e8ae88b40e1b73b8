"""In vLLM's worker processes: bytes between the KV cache and the shelf."""
