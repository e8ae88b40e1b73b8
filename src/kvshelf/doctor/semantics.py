"""What the mount does when asked as an engine asks: in a scratch folder, by the engine's own code.

The calls are made by the native core (``kvshelf.engine.probe``), so that what is said here is what
stores and loads meet.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kvshelf.disk.volume import NO_ROOM
from kvshelf.doctor.findings import Finding, fine, note, problem, warning
from kvshelf.doctor.room import no_room
from kvshelf.engine import FileStatus
from kvshelf.engine.probe import Naming, Outcome, ProbeReport, probe

# Ages count by the server's clock; logs of the two are hard to compare.
_SKEW_SECONDS_MAX = 5.0
_SLOW_SYNC_SECONDS = 0.05
_COARSE_NS, _DAY_NS = 2 * 10**9, 86_400 * 10**9
_SERVER_LOG = "see the kernel's log and its server's"
_REMEDIES = {
    errno.ENOSPC: "free room or inodes",
    errno.EDQUOT: "raise the quota, or remove what counts for it",
    errno.EROFS: "mount it read-write",
    errno.EACCES: "give the engines' user the right to write below the shelf",
    errno.EPERM: "give the engines' user the right to write below the shelf",
}


def check_semantics(
    folder: Path,
    *,
    durability: str = "none",
    file_mode: int = 0o640,
    dir_mode: int = 0o2770,
    measure: Callable[..., ProbeReport] = probe,
) -> list[Finding]:
    """All checks of this module; an error of the mount becomes a finding of its check.

    Args:
        durability: the setting that engines will have.
        measure: makes the report; for tests.
    """
    try:
        report = measure(folder, file_mode=file_mode, dir_mode=dir_mode)
        findings = list(_findings_of(report, durability))
    except OSError as error:
        reason = error.strerror or str(error)
        findings = [problem("publication", f"the mount refuses: {reason}", _SERVER_LOG)]
        if error.errno in NO_ROOM:
            findings = [no_room(error.errno, folder)]
    try:
        findings.append(check_clock(folder))
    except OSError as error:
        findings.append(problem("clock", f"the mount refuses: {error.strerror}", _SERVER_LOG))
    return findings


def _findings_of(report: ProbeReport, durability: str) -> Iterator[Finding]:
    yield from check_publication(report)
    if report.stored.ok:
        yield check_access_times(report)
        yield check_direct(report)
        yield check_allocation(report)
        yield check_sync(report, durability)


def text_of(outcome: Outcome) -> str:
    """What became of a step, in words."""
    if outcome.status is FileStatus.IO_ERROR:
        return os.strerror(outcome.errno)
    return outcome.status.name.lower().replace("_", " ")


def remedy_of(outcome: Outcome) -> str:
    return _REMEDIES.get(outcome.errno, _SERVER_LOG)


def check_publication(report: ProbeReport) -> Iterator[Finding]:
    """Giving a file its name without replacing another, and reading and removing it by that."""
    steps = [("stored", report.stored)]
    if report.stored.ok:
        steps += [
            ("stored by a second replica", report.stored_again),
            ("loaded", report.loaded),
            ("removed", report.removed),
        ]
    for step, outcome in steps:
        if not outcome.ok:
            message = f"a chunk cannot be {step}: {text_of(outcome)}"
            yield problem("publication", message, remedy_of(outcome))
            return
    if report.replaced and report.naming is not Naming.RENAME:
        yield problem(
            "publication",
            "a name that is taken is given to another file",
            "do not use this file system: readers could see a file change",
        )
    elif report.naming is Naming.RENAME_NOREPLACE:
        yield fine("publication", "renameat2(RENAME_NOREPLACE): whole files, never replaced")
    elif report.naming is Naming.LINK:
        reason = os.strerror(report.rename_error)
        yield fine(
            "publication",
            f"link(2), since RENAME_NOREPLACE is not here ({reason}): whole files, never replaced",
        )
    else:
        reasons = f"{os.strerror(report.rename_error)}; {os.strerror(report.link_error)}"
        yield warning(
            "publication",
            f"plain rename(2), since neither RENAME_NOREPLACE nor link is here ({reasons}): two "
            "replicas that store one chunk at once may replace each other's file, with the same "
            "bytes",
            "nothing to be done; loads that meet it are misses",
        )
    if report.in_order:
        yield note(
            "writes",
            "only from a file's start to its end: the engine keeps each chunk in memory until it "
            "is whole",
            "plan one chunk's bytes of memory more for each I/O thread (threads_per_gpu)",
        )


def check_access_times(report: ProbeReport) -> Finding:
    """Eviction goes by modification times that kvshelf sets itself (utimensat(2))."""
    lost = abs(report.touched_ns - report.wanted_ns)
    if report.touch_error or lost > _DAY_NS:
        reason = f" ({os.strerror(report.touch_error)})" if report.touch_error else ""
        return problem(
            "access times",
            f"times cannot be set{reason}: eviction could not tell what is used",
            "a mount that takes utimensat(2)",
        )
    if lost > _COARSE_NS:  # FAT
        return warning(
            "access times",
            "kept in days: eviction cannot tell what of a day was used last",
            "a file system that keeps times in seconds or less",
        )
    steps = (("nanoseconds", 1), ("microseconds", 1_000), ("milliseconds", 1_000_000))
    step = next((text for text, size in steps if lost < size), "seconds")
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


def check_direct(report: ProbeReport) -> Finding:
    if report.direct_error:
        reason = os.strerror(report.direct_error)
        return note("O_DIRECT", f"not here ({reason}): leave direct off")
    return fine("O_DIRECT", "works (direct=auto or on)")


def check_allocation(report: ProbeReport) -> Finding:
    """fallocate(2) tells a full disk before anything is written."""
    if report.in_order:
        return note("allocation", "not asked for where writes go in order")
    if report.allocate_error:
        reason = os.strerror(report.allocate_error)
        return note("allocation", f"not here ({reason}): a full disk shows at write")
    return fine("allocation", "works")


def check_sync(report: ProbeReport, durability: str) -> Finding:
    """fdatasync(2) of a chunk, and fsync(2) of its folders, as the setting ``durability`` asks."""
    refused = [
        (name, outcome)
        for name, outcome in (("data", report.synced_data), ("full", report.synced_full))
        if not outcome.ok
    ]
    if not refused:
        text = f"a synced store of 1 MiB takes {1e3 * report.sync_seconds:.1f} ms"
        if report.sync_seconds > _SLOW_SYNC_SECONDS:
            return note("sync", f"{text}: durability=none (the default) does without")
        return fine("sync", text)
    name, outcome = refused[0]
    what = "files" if name == "data" else "folders"
    text = f"fsync of {what} is refused ({text_of(outcome)})"
    allowed = "none" if name == "data" else "none or data"
    if durability in [name for name, _ in refused]:
        return problem("sync", f"{text}: durability={durability} fails", f"durability={allowed}")
    return note("sync", f"{text}: durability can be {allowed}")
