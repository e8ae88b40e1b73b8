"""Run vLLM's own offloading tests with kvshelf's classes put in.

    python scripts/peer.py DIR

Fetches the tests of the installed vLLM into DIR, runs those of its ``fs`` tier and of its tiering
manager with KvshelfTier, and those of its connector's scheduler with KvshelfConnector.

Exit status 1: a test failed that tests/peer/accepted.toml does not name, one that it names passed
or is not there any more, or nothing ran.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / "tests" / "peer"
CONNECTOR = "tests/v1/kv_connector/unit/offloading_connector"
SUITES = (
    "tests/v1/kv_offload/tiering/test_fs_tier.py",
    "tests/v1/kv_offload/tiering/test_tiering_offloading.py",
    f"{CONNECTOR}/test_scheduler.py",
)


def run(folder: Path, results: Path, scratch: str, extra: list[str]) -> None:
    environment = {
        **os.environ,
        # Before ours, for both have a package "tests".
        "PYTHONPATH": f"{folder}{os.pathsep}{PEER}",
        "KVSHELF_PEER_RESULTS": str(results),
        "KVSHELF_PEER_SCRATCH": scratch,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "kvshelf_peer"]
    # Of vLLM's fixtures only the connector's: those of all its tests want models and GPUs.
    command += ["--rootdir", str(folder), "--confcutdir", str(folder / CONNECTOR), "--tb=short"]
    subprocess.run(  # noqa: S603 - our own arguments
        [*command, *extra, *SUITES], check=False, cwd=folder, env=environment
    )


def compare(outcomes: dict[str, str], accepted: dict[str, str]) -> list[str]:
    """What is wrong, a line each."""
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    passed = {name for name, outcome in outcomes.items() if outcome == "passed"}
    wrong = [f"failed, and is not accepted: {name}" for name in sorted(failed - accepted.keys())]
    for name, reason in accepted.items():
        if name in passed:
            wrong.append(f"passes now, take it out of accepted.toml: {name} ({reason})")
        elif name not in outcomes:
            wrong.append(f"is not there, take it out of accepted.toml: {name}")
        elif not reason.strip():
            wrong.append(f"accepted without a reason: {name}")
    return wrong or ([] if passed else ["no test passed"])


def main() -> int:
    directory, *extra = sys.argv[1:]
    fetch = [sys.executable, str(HERE / "fetch_peer.py"), directory]
    fetched = subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    folder = Path(fetched.stdout.splitlines()[-1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.json"
        run(folder, results, scratch, extra)
        outcomes = json.loads(results.read_text()) if results.exists() else {}
    accepted = tomllib.loads((PEER / "accepted.toml").read_text())
    by_suite = Counter((name.split("::")[0], outcome) for name, outcome in outcomes.items())
    for (suite, outcome), count in sorted(by_suite.items()):
        print(f"{count:4} {outcome:8} {suite}")
    wrong = compare(outcomes, accepted)
    print("\n".join(wrong) or f"as accepted: {len(accepted)} differences, each with its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
