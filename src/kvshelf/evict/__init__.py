"""Eviction: which chunks go first, and the evictor that removes them."""
