"""What `make test-peer` makes of outcomes; the run itself needs a package index."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from scripts.peer import PEER, compare

OUTCOMES = {"a": "passed", "b": "failed", "c": "skipped"}


@pytest.mark.parametrize(
    ("accepted", "wrong"),
    [
        ({"b": "for a reason"}, None),
        ({}, "not accepted: b"),
        ({"b": "for a reason", "a": "no more"}, "passes now"),
        ({"b": "for a reason", "d": "renamed"}, "is not there"),
        ({"b": " "}, "without a reason"),
    ],
)
def test_only_what_is_accepted_may_fail(accepted: dict[str, str], wrong: str | None) -> None:
    lines = compare(OUTCOMES, accepted)
    assert (lines == []) if wrong is None else (len(lines) == 1 and wrong in lines[0])


def test_a_run_of_nothing_is_wrong() -> None:
    assert compare({}, {}) == ["no test passed"]


def test_each_accepted_difference_has_a_reason() -> None:
    accepted = tomllib.loads((Path(PEER) / "accepted.toml").read_text())
    assert accepted and all(len(reason) > 10 for reason in accepted.values())
