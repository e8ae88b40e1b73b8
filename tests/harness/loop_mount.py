"""Real file systems on loop devices, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def loop_mount(
    directory: Path, kind: str, megabytes: int, *, mkfs: tuple[str, ...] = (), options: str = ""
) -> Iterator[Path]:
    """A new file system of this kind and size, mounted below ``directory`` until the end; skips the
    test where that is not possible.

    Args:
        mkfs: further arguments of mkfs.
        options: further mount options.
    """
    image, folder = directory / f"{kind}.image", directory / f"{kind}.mount"
    folder.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    force = "-F" if kind.startswith("ext") else "-f"
    steps = (
        [f"mkfs.{kind}", "-q", force, *mkfs, str(image)],
        ["mount", "-o", f"loop,{options}" if options else "loop", str(image), str(folder)],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            pytest.skip(f"no loop-mounted {kind} here: {error} {said.decode(errors='replace')}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)
        image.unlink()
