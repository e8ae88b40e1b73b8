"""A small API server for tests: enough of Kubernetes' HTTP API for unmodified kubectl and helm.

It keeps objects in memory, refuses what strict schemas refuse, and plays the part of the few
controllers whose results the guide shows (``controllers.py``). It starts no container.
"""
