"""A scrub of a whole shelf. One thread; other scrubs, engines and evictors may run meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kvshelf.disk.auth import key_id
from kvshelf.disk.documents import read_json
from kvshelf.disk.layout import (
    NAMESPACE_FILE,
    SCRUB_CURSOR,
    TEMP_FOLDER,
    parse_chunk_path,
    short_digest,
)
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import check_root
from kvshelf.disk.tree import GONE, entries, folder_at, root_at
from kvshelf.disk.walk import Found, What, walk, what_is
from kvshelf.errors import NotAShelfError
from kvshelf.upkeep.scrub import cursor as cursors
from kvshelf.upkeep.scrub.cursor import Cursor
from kvshelf.upkeep.scrub.findings import Action, Finding, Kind, Totals
from kvshelf.upkeep.scrub.mount import look_at_mount
from kvshelf.upkeep.scrub.orphans import Orphans
from kvshelf.upkeep.scrub.pace import Pace
from kvshelf.upkeep.scrub.settings import ScrubSettings
from kvshelf.upkeep.scrub.unused import UnusedNamespaces
from kvshelf.upkeep.scrub.verify import Expected, FileVerifier, Verdict

# Orphans and unused namespaces are looked for so often during a pass, which may take weeks.
HOUSEKEEPING_SECONDS = 6 * 3600.0
# What a crash may cost to do again.
CURSOR_SECONDS = 10.0
# Faults without a good answer between them after which the storage is left alone.
FAULTS_MAX = 100

# Nothing is wrong with these; of all others the kind has the verdict's name.
_GOOD = (Verdict.SOUND, Verdict.SEALED, Verdict.GONE)


class Scrubber:
    """Scrubs the shelf at ``root``, from where the last scrub stopped to the end.

    Args:
        clock, sleep: of seconds; for tests.

    Attributes:
        totals: counts of the run so far.
    """

    def __init__(
        self,
        root: Path,
        settings: ScrubSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root, self._settings, self._clock = root, settings, clock
        self._pace = Pace(
            settings.megabytes_per_second * 1e6, settings.files_per_second, clock=clock, sleep=sleep
        )
        self._end = clock() + 60 * settings.minutes if settings.minutes else float("inf")
        self._housekeeping_due = self._cursor_due = clock() + CURSOR_SECONDS
        self._cursor = Cursor()
        self._namespace, self._digest = "", b""
        self._authenticated: bool | None = None
        self._use_key = False
        self._faults = 0
        self.totals = Totals()

    def run(self) -> Iterator[Finding]:
        """Findings as they are made, once. Closing the iterator stops, and keeps the place.

        Raises:
            NotAShelfError: the directory carries no marker that we know.
            OSError: it cannot be read, or has none.
        """
        with root_at(self._root) as root:
            check_root(self._root)
            # The directory that carries the marker is the one that is held open.
            if not os.path.samestat(os.fstat(root), self._root.stat()):
                raise NotAShelfError(f"{self._root} was replaced meanwhile")
            for finding in self._run(root):
                self.totals.note(finding)
                yield finding

    def _run(self, root: int) -> Iterator[Finding]:
        if not self._settings.dry_run and not self._settings.from_start:
            yield from self._load_cursor(root)
        mount = look_at_mount(root)
        verifier = FileVerifier(mount, self._pace, self._settings.auth_key)
        try:
            yield from self._housekeep(root, mount.now)
            after = self._cursor.after.split("/") if self._cursor.after else []
            for found in walk(root, after=after, skip=TEMP_FOLDER):
                yield from self._look(root, found, verifier)
                if self._faults > FAULTS_MAX:
                    yield Finding(Kind.FAULT, "", f"{self._faults} faults in a row: stopped")
                    return
                if self._clock() >= self._end:
                    return
                yield from self._between(root)
            self._cursor = Cursor("", self._cursor.passes + 1)
            self.totals.finished = True
        finally:
            self.totals.bytes = verifier.bytes_read
            self._save_cursor(root)

    def _between(self, root: int) -> Iterator[Finding]:
        """What is to be done now and then."""
        now = self._clock()
        if now >= self._cursor_due:
            self._save_cursor(root)
            self._cursor_due = now + CURSOR_SECONDS
        if now >= self._housekeeping_due:
            yield from self._housekeep(root, look_at_mount(root).now)

    def _load_cursor(self, root: int) -> Iterator[Finding]:
        try:
            self._cursor = cursors.load(root)
        except ValueError as error:
            yield Finding(Kind.FOREIGN, SCRUB_CURSOR, f"{error}: begun anew")
        except OSError as error:
            yield Finding(Kind.FAULT, SCRUB_CURSOR, error.strerror or str(error))

    def _save_cursor(self, root: int) -> None:
        # A scrub that cannot keep its place is still one: the next begins where this one did.
        if not self._settings.dry_run:
            with contextlib.suppress(OSError):
                cursors.save(root, self._cursor)

    def _housekeep(self, root: int, now: float | None) -> Iterator[Finding]:
        """Orphans, and namespaces that nobody uses; ``now`` is of the file system's clock."""
        self._housekeeping_due = self._clock() + HOUSEKEEPING_SECONDS
        settings = self._settings
        orphans = Orphans(now, 3600 * settings.temp_hours, dry_run=settings.dry_run)
        age_seconds = 86_400 * settings.unused_days
        unused = UnusedNamespaces(now or 0, age_seconds, self._pace, dry_run=settings.dry_run)
        try:
            for name, kind in entries(root):
                what = what_is("", name, kind)
                if what is What.TEMP:
                    yield from orphans.judge(root, name, name)
                elif what is What.SCRATCH:
                    yield from orphans.judge_scratch(root, name)
                elif what is What.REMOVED and not settings.dry_run:
                    # A scrub was killed while it removed a namespace.
                    yield from unused.empty(root, name)
                elif what is What.FOLDER:
                    yield from self._temp_folder(root, name, orphans)
                    if settings.unused_days and now is not None:
                        yield from unused.judge(root, name)
        except OSError as error:
            yield self._fault("", error)
        self.totals.writing = orphans.writing

    def _temp_folder(self, root: int, name: str, orphans: Orphans) -> Iterator[Finding]:
        path = f"{name}/{TEMP_FOLDER}"
        try:
            with folder_at(root, name) as namespace, folder_at(namespace, TEMP_FOLDER) as folder:
                for entry in entries(folder):
                    yield from orphans.judge(folder, entry.name, f"{path}/{entry.name}")
        except OSError as error:
            if error.errno not in (*GONE, errno.ELOOP):  # the walk reports a link
                yield self._fault(path, error)

    def _fault(self, path: str, error: OSError) -> Finding:
        self._faults += 1
        return Finding(Kind.FAULT, path, error.strerror or str(error))

    def _look(self, root: int, found: Found, verifier: FileVerifier) -> Iterator[Finding]:
        """At one entry of the walk."""
        if found.error is not None:
            yield self._fault(found.path, found.error)
        elif found.what is What.FOREIGN:
            yield Finding(Kind.FOREIGN, found.path, "not kvshelf's")
        elif found.what is What.NAMESPACE:
            yield from self._enter(root, found.path.partition("/")[0])
        elif found.what is What.CHUNK:
            yield from self._enter(root, found.path.partition("/")[0])
            yield from self._chunk(found, verifier)

    def _enter(self, root: int, namespace: str) -> Iterator[Finding]:
        """Learn the digest that a namespace's chunks have."""
        if namespace == self._namespace:
            return
        # All that is known if namespace.json does not say more.
        self._namespace, self._digest = namespace, short_digest(namespace)
        self._authenticated, self._use_key = None, False
        path = f"{namespace}/{NAMESPACE_FILE}"
        try:
            with folder_at(root, namespace) as folder:
                identity = Identity.from_json(read_json(NAMESPACE_FILE, dir_fd=folder))
        except FileNotFoundError:
            yield Finding(Kind.NAMESPACE, path, "there is none")
        except ValueError as error:
            yield Finding(Kind.NAMESPACE, path, str(error))
        except OSError as error:
            yield self._fault(path, error)
        else:
            if identity.folder == namespace:
                self._digest = identity.digest
                yield from self._seal(namespace, identity.fields.get("auth_key"))
            else:
                yield Finding(Kind.NAMESPACE, path, f"it is of the folder {identity.folder}")
                self._digest = b""

    def _seal(self, namespace: str, name: object) -> Iterator[Finding]:
        """Learn whether the namespace's chunks carry tags, and whether of the key that we have."""
        key = self._settings.auth_key
        self._authenticated = name is not None
        self._use_key = bool(key) and name == key_id(key)
        if self._authenticated and not self._use_key:
            yield Finding(Kind.SEALED, namespace, f"to verify its payloads give the key {name}")

    def _chunk(self, found: Found, verifier: FileVerifier) -> Iterator[Finding]:
        name = parse_chunk_path(found.path)
        assert name is not None, "the walk calls nothing else a chunk"
        # Whoever renamed a namespace's folder had a reason, and no engine looks into it: what lies
        # there is judged by its own headers, and kept.
        renamed = not self._digest
        expected = Expected(self._digest, name.key, name.rank, self._authenticated, self._use_key)
        remove = not self._settings.dry_run and not renamed
        outcome = verifier.check(found.folder, found.name, expected, remove=remove)
        if outcome.verdict is Verdict.GONE:
            self.totals.vanished += 1
        else:
            self.totals.files += 1
            self.totals.sealed += outcome.verdict is Verdict.SEALED
        self._faults = self._faults + 1 if outcome.verdict is Verdict.FAULT else 0
        if outcome.verdict not in _GOOD:
            action = Action.REMOVED if outcome.removed else Action.KEPT
            if outcome.verdict.bad and self._settings.dry_run and not renamed:
                action = Action.WOULD_REMOVE
            kind = Kind[outcome.verdict.name]
            yield Finding(kind, found.path, outcome.reason, action)
        self._cursor = Cursor(found.path, self._cursor.passes)
