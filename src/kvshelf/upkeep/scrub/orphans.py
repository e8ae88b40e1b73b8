"""Temp files of writers that are gone, and scratch folders of a bench. One thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from kvshelf.disk.layout import MARKER, TempOwner, parse_temp_name
from kvshelf.disk.leftovers import is_scratch
from kvshelf.disk.this_process import is_gone, this_owner
from kvshelf.disk.tree import GONE, folder_at, remove_tree, unlink_if_same
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind


class Orphans:
    """Judges temp files.

    Args:
        now: of the file system's clock; None if it is not known: then no file is old.
        age_seconds: at which a temp file is an orphan if its writer cannot be looked for.

    Attributes:
        writing: number of files and folders that were left to their writers.
    """

    def __init__(self, now: float | None, age_seconds: float, *, dry_run: bool) -> None:
        self._now, self._age_seconds, self._dry_run = now, age_seconds, dry_run
        self._here = this_owner()
        self.writing = 0

    def judge(self, folder: int, name: str, path: str) -> Iterator[Finding]:
        """One entry of a folder for temp files: a finding, or nothing if it may be being written.

        Args:
            folder: its folder's descriptor.
            path: relative to the root, for the finding.
        """
        owner = parse_temp_name(name.removeprefix("."))
        try:
            seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if owner is None or not stat.S_ISREG(seen.st_mode):
                yield Finding(Kind.FOREIGN, path, "not a temp file of kvshelf")
                return
            reason = self._why_orphan(owner, seen)
            if not reason:
                self.writing += 1
            elif self._dry_run:
                yield Finding(Kind.ORPHAN, path, reason, Action.WOULD_REMOVE)
            elif unlink_if_same(folder, name, seen):
                yield Finding(Kind.ORPHAN, path, reason, Action.REMOVED)
        except OSError as error:
            if error.errno not in GONE:
                yield Finding(Kind.FAULT, path, error.strerror or str(error))

    def judge_scratch(self, root: int, name: str) -> Iterator[Finding]:
        """A folder in the root that is named as a temp file: likewise. What lies in it goes only if
        it carries our marker."""
        owner = parse_temp_name(name.removeprefix("."))
        assert owner is not None, "the walk calls nothing else scratch"
        try:
            with folder_at(root, name) as folder:
                seen = os.fstat(folder)
                reason = self._why_orphan(owner, seen)
                is_ours = is_scratch(folder)
            if not reason:
                self.writing += 1
            elif not is_ours:
                yield Finding(Kind.FOREIGN, name, "no marker of kvshelf in it")
            elif self._dry_run:
                yield Finding(Kind.ORPHAN, name, reason, Action.WOULD_REMOVE)
            else:
                remove_tree(root, name, os.fstat(root).st_dev, last=MARKER)
                yield Finding(Kind.ORPHAN, name, reason, Action.REMOVED)
        except OSError as error:
            if error.errno not in GONE:
                yield Finding(Kind.FAULT, name, error.strerror or str(error))

    def _why_orphan(self, owner: TempOwner, seen: os.stat_result) -> str:
        """Empty if its writer lives, or may."""
        gone = is_gone(owner, self._here)
        if gone:
            return "its writer has ended"
        if gone is False or self._now is None:
            return ""
        age = self._now - max(seen.st_mtime, seen.st_ctime)
        if age < self._age_seconds:
            return ""
        return f"nobody has written to it for {age / 3600:.0f} hours"
