"""Looks at a mount, a host and a configuration as kvshelf will use them.

A library: every check returns findings, ``kvshelf doctor`` prints them. Nothing here imports vLLM
or torch.
"""

from kvshelf.doctor.findings import Finding, Severity

__all__ = ["Finding", "Severity"]
