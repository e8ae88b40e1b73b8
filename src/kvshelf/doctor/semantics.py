"""What the mount does when asked as kvshelf asks: in a scratch folder, with files of a few KB."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from kvshelf.doctor.findings import Finding, fine, note, problem, warning

# Ages count by the server's clock; logs of the two are hard to compare.
_SKEW_SECONDS_MAX = 5.0
_SLOW_SYNC_SECONDS = 0.05
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100


def check_semantics(folder: Path) -> list[Finding]:
    """All checks of this module; an error of the mount becomes a finding of its check."""
    checks: list[tuple[str, Callable[[Path], Finding]]] = [
        ("publication", check_publication),
        ("access times", check_access_times),
        ("clock", check_clock),
        ("O_DIRECT", check_direct),
        ("allocation", check_allocation),
        ("sync", check_sync),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check(folder))
        except OSError as error:
            reason = error.strerror or str(error)
            findings.append(problem(name, f"the mount refuses: {reason}", "see its server's log"))
    return findings


def check_publication(folder: Path) -> Finding:
    """Giving a file its name without replacing another: renameat2(2), or link(2)."""
    taken, new = folder / "taken", folder / "new"
    taken.write_bytes(b"first")
    new.write_bytes(b"second")
    number = rename_noreplace(new, taken)
    if number == errno.EEXIST and taken.read_bytes() == b"first":
        way = "renameat2(RENAME_NOREPLACE)"
        if rename_noreplace(new, folder / "free") != 0:
            return problem("publication", f"{way} to a free name fails", "report this file system")
        return fine("publication", f"{way}: whole files, never replaced")
    if number == 0 or taken.read_bytes() != b"first":
        return problem(
            "publication",
            "RENAME_NOREPLACE replaces files",
            "do not use this file system: readers could see a file change",
        )
    try:
        os.link(new, folder / "linked")
    except OSError as error:
        return warning(
            "publication",
            f"neither RENAME_NOREPLACE nor link ({error.strerror}): two replicas that store one "
            "chunk at once may replace each other's file, with the same bytes",
            "nothing to be done; loads that meet it are misses",
        )
    return fine("publication", "link(2): whole files, never replaced")


def rename_noreplace(source: Path, target: Path) -> int:
    """0 or an errno."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    result = renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    return 0 if result == 0 else ctypes.get_errno()


def check_access_times(folder: Path) -> Finding:
    """Eviction goes by modification times that kvshelf sets itself (utimensat(2)): a reader changes
    access times."""
    path = folder / "times"
    path.write_bytes(b"x")
    wanted = 1_600_000_000_123_456_789
    os.utime(path, ns=(wanted, wanted))
    found = path.stat().st_mtime_ns
    if abs(found - wanted) > 1_000_000_000:
        return problem(
            "access times",
            "times cannot be set: eviction could not tell what is used",
            "a mount that takes utimensat(2)",
        )
    step = next(
        text
        for text, size in (
            ("nanoseconds", 1),
            ("microseconds", 1_000),
            ("milliseconds", 1_000_000),
            ("seconds", 10**9 + 1),
        )
        if abs(found - wanted) < size
    )
    return fine("access times", f"settable, kept in {step}")


def check_clock(folder: Path) -> Finding:
    """The server's clock against this host's."""
    path = folder / "clock"
    before = time.time()
    path.write_bytes(b"x")
    skew = path.stat().st_mtime - (before + time.time()) / 2
    if abs(skew) > _SKEW_SECONDS_MAX:
        return warning(
            "clock",
            f"the file server's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}",
            "NTP on both; kvshelf counts ages by the server's clock",
        )
    return fine("clock", f"within {max(abs(skew), 0.01):.2f} s of this host's")


def check_direct(folder: Path) -> Finding:
    from kvshelf.engine.native import probe_direct  # noqa: PLC0415 - the rest needs no extension

    number = probe_direct(folder)
    if number:
        return note("O_DIRECT", f"not here ({os.strerror(number)}): leave direct off")
    return fine("O_DIRECT", "works (direct=auto or on)")


def check_allocation(folder: Path) -> Finding:
    """fallocate(2) tells a full disk before anything is written."""
    with (folder / "allocated").open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return problem("allocation", "no room for 1 MB", "free some")
            return note("allocation", f"not here ({error.strerror}): a full disk shows at write")
    return fine("allocation", "works")


def check_sync(folder: Path) -> Finding:
    path = folder / "synced"
    with path.open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        started = time.perf_counter()
        os.fsync(file.fileno())
        took = time.perf_counter() - started
    text = f"fsync of 1 MB takes {1e3 * took:.1f} ms"
    if took > _SLOW_SYNC_SECONDS:
        return note("sync", f"{text}: durability=none (the default) does without")
    return fine("sync", text)
