"""Keeps a shelf within its limits. See docs/eviction.md."""
