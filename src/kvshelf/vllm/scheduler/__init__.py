"""In vLLM's scheduler process: which chunks are there, what is loaded, stored and evicted."""
