"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How much a finding matters; worse is more."""

    FINE = 0
    NOTE = 1  # worth knowing
    WARNING = 2  # works, but slower or with less than could be had
    PROBLEM = 3  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        check: a word for what was looked at; stable, for scripts.
        message: what is so, with its figures.
        remedy: what to do about it; "" if nothing is to be done.
    """

    check: str
    severity: Severity
    message: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"severity": self.severity.name.lower()}


def fine(check: str, message: str) -> Finding:
    return Finding(check, Severity.FINE, message)


def note(check: str, message: str, remedy: str = "") -> Finding:
    return Finding(check, Severity.NOTE, message, remedy)


def warning(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, Severity.WARNING, message, remedy)


def problem(check: str, message: str, remedy: str) -> Finding:
    return Finding(check, Severity.PROBLEM, message, remedy)
