"""Unpack the Python files of the oldest and newest supported vLLM, to run tests/vllm on them.

    python scripts/fetch_window.py DIR VERSION...

Writes DIR/VERSION/vllm; what is there already is left alone. The wheels come from pip as the
machine configures it; their native parts are left out, and nothing of theirs is installed.

These wheels are for GPUs and would find none. So a platform plugin of vLLM's kind is written beside
them (https://docs.vllm.ai/en/latest/design/plugin_system, group vllm.platform_plugins) that says
that the platform is the CPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# What vLLM's wheels are tagged with; pip matches these exactly.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 31, 34, 35)] + [
    "manylinux1_x86_64",
    "manylinux2014_x86_64",
]
LEFT_OUT = (".so", "vllm-rs")
PLUGIN = {
    "kvshelf_cpu_platform.py": 'def cpu():\n    return "vllm.platforms.cpu.CpuPlatform"\n',
    "kvshelf_cpu_platform-0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: kvshelf-cpu-platform\nVersion: 0\n"
    ),
    "kvshelf_cpu_platform-0.dist-info/entry_points.txt": (
        "[vllm.platform_plugins]\nkvshelf-cpu-platform = kvshelf_cpu_platform:cpu\n"
    ),
}


def fetch(directory: Path, version: str) -> None:
    target = directory / version
    if (target / "vllm").is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", "3.12", "--dest", scratch]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        subprocess.run([*command, f"vllm=={version}"], check=True)  # noqa: S603 - our own arguments
        (wheel,) = Path(scratch).glob("vllm-*.whl")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if not n.endswith(LEFT_OUT)]
            archive.extractall(unpacked, [n for n in names if "/third_party/" not in n])
        directory.mkdir(parents=True, exist_ok=True)
        # Moved whole, so that an interrupted run leaves nothing that looks complete.
        shutil.move(unpacked, target)


def write_plugin(target: Path) -> None:
    for name, text in PLUGIN.items():
        path = target / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def main() -> int:
    directory, *versions = sys.argv[1:]
    for version in versions:
        fetch(Path(directory), version)
        write_plugin(Path(directory) / version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
