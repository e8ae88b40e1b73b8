"""The mount with faults, for tests: where it does not mount, they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import faulty_mount
from tests.harness.faulty_mount import why_not

__all__ = ["FaultyMount", "why_not"]


class FaultyMount(faulty_mount.FaultyMount):
    def __init__(self, directory: Path) -> None:
        try:
            super().__init__(directory)
        except OSError as error:
            pytest.skip(str(error))
