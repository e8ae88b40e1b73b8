"""The format's test vectors, judged by the scrub's verifier, read both ways."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvshelf.upkeep.scrub.mount import look_at_mount
from kvshelf.upkeep.scrub.pace import Pace
from kvshelf.upkeep.scrub.verify import Expected, FileVerifier, Verdict

VECTORS = Path(__file__).parents[2] / "vectors"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "vectors.json").read_text())


def wanted(case: dict[str, Any]) -> set[Verdict]:
    if case["file"] == "absent.chunk":
        return {Verdict.GONE}
    if case["file"] == "ok-padding-damaged.chunk":
        return {Verdict.PADDING}
    if case["status"] == "CORRUPT":
        # A load reads the pieces that it wants; a scrub finds what is wrong with any.
        return {Verdict.CORRUPT}
    if case["status"] == "FOREIGN":
        # A file's name tells nothing of its geometry: what is only of another one is sound.
        return {Verdict.VERSION, Verdict.MISPLACED, Verdict.SOUND}
    return {Verdict.SOUND, Verdict.CORRUPT}  # a load of a part of a damaged file may be right


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_vector_is_judged(
    case: dict[str, Any], direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (VECTORS / case["file"]).exists():
        shutil.copy(VECTORS / case["file"], tmp_path)
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    secret = bytes.fromhex(case["auth_key"])
    expected = Expected(
        bytes.fromhex(case["namespace"]),
        bytes.fromhex(case["key"]),
        case["rank"],
        authenticated=bool(secret),
        use_key=bool(secret),
    )
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        verifier = FileVerifier(look_at_mount(folder), Pace(0, 0), secret)
        outcome = verifier.check(folder, case["file"], expected, remove=False)
    finally:
        os.close(folder)
    assert outcome.verdict in wanted(case)
    if (
        case["status"] == "OK"
        and "piece-flipped" not in case["file"]
        and "payload" not in case["file"]
    ):
        assert outcome.verdict in (Verdict.SOUND, Verdict.PADDING)
    if case["file"].startswith("version-2"):
        assert outcome.verdict is Verdict.VERSION
