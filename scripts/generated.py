"""What scripts that generate files share: write them, or with --check say which are stale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def keep(made: Mapping[Path, str], arguments: list[str], script: str) -> int:
    """Write the files whose text is another, or, given ``--check``, only name them.

    Returns the exit status: 1 if ``--check`` found one.
    """
    check = arguments == ["--check"]
    stale = 0
    for path, text in made.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{path} is stale: python scripts/{script}")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if stale and check else 0
