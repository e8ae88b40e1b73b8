"""Keeps a shelf within its limits. See docs/explain/eviction.md."""
