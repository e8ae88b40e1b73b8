"""Keeps a shelf within its limits: who evicts (lease), and what was removed (journal)."""
