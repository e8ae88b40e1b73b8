"""The demo harness's faulty mount, for tests: where it does not mount, they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

import faulty_mount
from faulty_mount import why_not

__all__ = ["FaultyMount", "why_not"]


class FaultyMount(faulty_mount.FaultyMount):
    def __init__(self, directory: Path) -> None:
        try:
            super().__init__(directory)
        except OSError as error:
            pytest.skip(str(error))
