"""What a scrub finds. Pure data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What is wrong."""

    CORRUPT = "corrupt"  # a chunk file whose header, payload or size is damaged: removed
    MISPLACED = "misplaced"  # a sound chunk of another namespace, rank or key: removed
    PADDING = "padding"  # a sound chunk, but the bytes behind it were changed: kept
    VERSION = "version"  # a chunk file of another format version: kept
    UNSTEADY = "unsteady"  # bad when first read, good when read again: kept
    FOREIGN = "foreign"  # an entry that is not kvshelf's: kept
    NAMESPACE = "namespace"  # a namespace.json that is damaged, absent or of another folder: kept
    ORPHAN = "orphan"  # a temp file whose writer is gone: removed
    SEALED = "sealed"  # a namespace whose chunks carry tags of a key that was not given: kept
    UNUSED = "unused"  # a namespace that no engine has used for long: removed
    UNREADABLE = "unreadable"  # no permission, or reading would make it look used: kept
    FAULT = "fault"  # the storage gave an error: kept


class Action(StrEnum):
    """What was done about it."""

    KEPT = "kept"
    REMOVED = "removed"
    WOULD_REMOVE = "would remove"  # a dry run


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: relative to the root; "" for the root itself. May hold any character.
        detail: what is wrong, in words.
    """

    kind: Kind
    path: str
    detail: str
    action: Action = Action.KEPT

    def to_json(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(slots=True)
class Totals:
    """Counts of a run.

    Attributes:
        files: chunk files that were verified.
        bytes: that were read of them.
        sealed: of the files, those whose payload only their key could judge.
        vanished: chunk files that were evicted or removed by others meanwhile.
        writing: temp files of writers that live, or may.
        finished: whether the end of the shelf was reached.
    """

    files: int = 0
    bytes: int = 0
    sealed: int = 0
    vanished: int = 0
    writing: int = 0
    finished: bool = False
    findings: Counter[Kind] = field(default_factory=Counter)
    actions: Counter[Action] = field(default_factory=Counter)

    def note(self, finding: Finding) -> None:
        self.findings[finding.kind] += 1
        self.actions[finding.action] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "bytes": self.bytes,
            "sealed": self.sealed,
            "vanished": self.vanished,
            "writing": self.writing,
            "finished": self.finished,
            "findings": {str(kind): count for kind, count in sorted(self.findings.items())},
            "removed": self.actions[Action.REMOVED],
        }
