"""Answers of real vLLM engines on a GPU with kvshelf, compared with those of engines without it,
while weights change, engines sleep, loads fail and blocks are reused.

    python benchmarks/gpu/safety.py DIR --out OUT [--cases weights,sleep] [--wave-seconds 200]

SAFETY_DTYPE: float32 or bfloat16; without it, bfloat16 if its rounding hides nothing. Each case is
a process of its own, with a limit of time; cases of one wave run at once. Results are
written to OUT/safety.json as they come, logs to OUT/CASE.log. Exit 0 if no case found a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

WAVES = (
    ("prepare",),
    ("weights", "sync", "multi-host-first", "multi-ours-first", "adapters"),
    # Alone, both: vLLM watches what memory the whole GPU has while it falls asleep.
    ("sleep",),
    ("sleep-in-process",),
    ("big",),  # alone: it takes 0.9 of the memory
    ("weights-tp2",),
)
HERE = Path(__file__).resolve().parent


def start(args: argparse.Namespace, case: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        __file__,
        str(args.directory),
        "--out",
        str(args.out),
        "--case",
        case,
    ]
    path = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions as RPCs
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    with (args.out / f"{case}.log").open("wb") as log:
        # A session of its own: the engine's processes end with it, and free the GPU.
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def result_of(args: argparse.Namespace, case: str, code: int | None) -> dict[str, Any]:
    found = args.out / f"{case}.json"
    result: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {"steps": []}
    log = (args.out / f"{case}.log").read_text(errors="replace")
    if not result.get("done"):
        result |= {"ok": False, "ended": "time limit" if code is None else f"exit {code}"}
        result["log_tail"] = log[-1500:]
    result["read_s"] = [float(s) for s in re.findall(r"weights in memory read in ([\d.]+) s", log)]
    result["budget_becomes_0"] = "sync_load_budget_bytes" in log and "becomes 0" in log
    errors = re.findall(r"^.*(?:ERROR|CUDA error|AssertionError).*$", log, re.MULTILINE)
    result["error_lines"] = [line[:300] for line in errors[:6]]
    return result


def run_wave(args: argparse.Namespace, cases: list[str]) -> dict[str, dict[str, Any]]:
    begun = time.monotonic()
    running = {case: start(args, case) for case in cases}
    results = {}
    while running:
        for case, process in list(running.items()):
            code = process.poll()
            if code is None and time.monotonic() - begun < args.wave_seconds:
                continue
            with contextlib.suppress(ProcessLookupError):  # also what an engine left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            results[case] = result_of(args, case, code)
            results[case]["seconds"] = round(time.monotonic() - begun, 1)
            del running[case]
            say(case, results[case])
        time.sleep(0.2)
    return results


def say(case: str, result: dict[str, Any]) -> None:
    faults = [row for row in result["steps"] if row.get("FAULT")]
    outcome = "ok" if result["ok"] else "FAULT"
    print(
        f"{case}: {outcome}, {result.get('wrong', '?')} of {result.get('answers', '?')} answers "
        f"wrong, {result['seconds']} s",
        json.dumps(faults)[:700],
        flush=True,
    )
    if not result["ok"]:
        print(
            result.get("ended"),
            result.get("log_tail", "")[-700:],
            result["error_lines"][:3],
            flush=True,
        )


def machine() -> dict[str, Any]:
    import torch
    import vllm

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": gpus,
        "cores": os.cpu_count(),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": os.environ.get("SAFETY_COMMIT", ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(c for w in WAVES[:-1] for c in w))
    parser.add_argument("--wave-seconds", type=float, default=200)
    parser.add_argument("--case", help="run this one here (the driver does)")
    args = parser.parse_args()
    args.directory, args.out = args.directory.resolve(), args.out.resolve()
    if args.case:
        import safety_cases

        safety_cases.run(args.directory, args.case, args.out / f"{args.case}.json")
        return 0
    args.directory.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.cases.split(",")
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "command": "python benchmarks/gpu/safety.py DIR --out OUT --cases " + args.cases,
        "cases": {},
    }
    for wave in WAVES:
        chosen = [case for case in wave if case in wanted]
        if chosen:
            report["cases"] |= run_wave(args, chosen)
            (args.out / "safety.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(each["ok"] for each in report["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
