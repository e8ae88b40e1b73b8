"""The file system's clock: the one by which chunks' ages count, whatever this machine's says.

A file that is made now has the time that the file system (or its server) gives it. Between two
measurements CLOCK_BOOTTIME tells how much time has passed: nobody sets it, so a clock of this
machine that is set meanwhile changes nothing. Sources: clock_gettime(2), utimensat(2), stat(2).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvshelf.disk.layout import EVICT_FOLDER, parse_lease_name, parse_temp_name, temp_name
from kvshelf.disk.root import check_root
from kvshelf.disk.this_process import is_gone, this_owner
from kvshelf.disk.tree import folder_at, root_at
from kvshelf.errors import KvshelfError

# A measurement is good for so long, unless this machine's clocks jump.
REFRESH_SECONDS = 60.0
# After a measurement that failed.
RETRY_SECONDS = 10.0
# This machine's two clocks differ by less than this from one look to the next, unless one jumps.
_JUMP_NS = 10**9
# Kernels stamp files with the time of the last tick (10 ms at 100 Hz).
_TICK_NS = 20_000_000
# A file of a measurement that was killed.
_DEAD_NS = 3600 * 10**9
# An odd second with digits down to the nanosecond, in 2020: every file system holds it.
_PROBE_NS = 1_600_000_001_123_456_789
# Steps in which file systems keep modification times: from nanoseconds to VFAT's two seconds.
_STEPS_NS = (1, 100, 1_000, 10_000, 1_000_000, 10_000_000, 10**9, 2 * 10**9)


def boot_ns_now() -> int:
    """CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement.

    Attributes:
        ahead_ns: of the file system's clock, to CLOCK_BOOTTIME.
        offset_ns: likewise, to CLOCK_REALTIME; 0 if they differ by no more than ``error_ns``.
        error_ns: what the round trip and the step of the times leave open.
        step_ns: of the times that the file system keeps.
    """

    ahead_ns: int
    offset_ns: int = 0
    error_ns: int = 0
    step_ns: int = 1


class FileClock:
    """The clock of a root's file system, measured when it is asked and due.

    A measurement makes a file in ``<root>/evict`` and removes it again. If none can be made there
    (a full disk), it renews the times of a lease file instead; without one, it tries in the root.
    If nothing can be written, the last measurement stays; without any, this machine's clock counts,
    and ``problem`` says why.

    Args:
        root: the shelf's directory.
        file_mode: of the file.
        real_ns, boot_ns: this machine's CLOCK_REALTIME and CLOCK_BOOTTIME, in nanoseconds.

    Attributes:
        problem: why the last measurement failed; None if it did not.

    Threads: one measures; ``reading`` may be read by any, and never waits for storage.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        file_mode: int = 0o640,
        real_ns: Callable[[], int] = time.time_ns,
        boot_ns: Callable[[], int] = boot_ns_now,
    ) -> None:
        self._root = Path(root)
        self._file_mode = file_mode
        self._real_ns, self._boot_ns = real_ns, boot_ns
        self._due_ns: int | None = None  # by CLOCK_BOOTTIME; None: now
        self._asked_ns = (0, 0)  # both clocks, when it was asked last
        self.reading: Reading | None = None
        self.problem: OSError | KvshelfError | None = None

    def now_ns(self) -> int:
        """The file system's time in nanoseconds since 1970. Measures if that is due."""
        reading = self.read()
        if reading is None:
            return self._real_ns()
        return self._boot_ns() + reading.ahead_ns

    def read(self) -> Reading | None:
        """The last measurement, renewed if that is due; None if none has ever succeeded."""
        if self._is_due():
            try:
                self.reading, self.problem = self.measure(), None
                seconds = REFRESH_SECONDS
            except (OSError, KvshelfError) as error:
                self.problem, seconds = error, RETRY_SECONDS
            self._due_ns = self._boot_ns() + int(1e9 * seconds)
        return self.reading

    def measure(self) -> Reading:
        """Measure now.

        Raises:
            NotAShelfError: the root carries no marker that we know.
            OSError: nothing can be written.
        """
        with root_at(self._root) as root:
            check_root("", dir_fd=root)  # an unmounted mount point is no shelf
            with contextlib.suppress(OSError), folder_at(root, EVICT_FOLDER) as folder:
                return self._in_folder(folder)
            return self._with_file(root, ".")  # as scrub and doctor name theirs there

    def _in_folder(self, folder: int) -> Reading:
        try:
            reading = self._with_file(folder, "")
        except OSError:
            renewed = self._with_lease(folder)
            if renewed is None:
                raise
            return renewed
        self._remove_dead(folder)
        return reading

    def _is_due(self) -> bool:
        before_real, before_boot = self._asked_ns
        real, boot = self._asked_ns = self._real_ns(), self._boot_ns()
        jump = abs((real - before_real) - (boot - before_boot))
        return self._due_ns is None or boot >= self._due_ns or boot < before_boot or jump > _JUMP_NS

    def _with_file(self, folder: int, prefix: str) -> Reading:
        name = prefix + temp_name(this_owner(), int.from_bytes(os.urandom(4), "big"))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        begin = self._real_ns(), self._boot_ns()
        file = os.open(name, flags, self._file_mode, dir_fd=folder)
        try:
            now_ns = _changed_ns(os.fstat(file))
            end = self._real_ns(), self._boot_ns()
            os.utime(file, ns=(_PROBE_NS, _PROBE_NS))
            step_ns = _step_of(os.fstat(file).st_mtime_ns)
        finally:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
        return _reading(begin, now_ns, end, step_ns)

    def _with_lease(self, folder: int) -> Reading | None:
        """Renewing times needs no room. A lease is its name: its times mean nothing."""
        for name in os.listdir(folder):
            if parse_lease_name(name) is None:
                continue
            with contextlib.suppress(OSError):
                begin = self._real_ns(), self._boot_ns()
                os.utime(name, dir_fd=folder, follow_symlinks=False)
                now_ns = _changed_ns(os.stat(name, dir_fd=folder, follow_symlinks=False))
                end = self._real_ns(), self._boot_ns()
                step_ns = self.reading.step_ns if self.reading else 1
                return _reading(begin, now_ns, end, step_ns)
        return None

    def _remove_dead(self, folder: int) -> None:
        """Files of measurements that were killed: regular ones of a dead owner, or an hour old."""
        here = this_owner()
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                owner = parse_temp_name(name)
                if owner is None:
                    continue
                with contextlib.suppress(OSError):
                    seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    dead = is_gone(owner, here)
                    if dead is None:
                        newest_ns = os.fstat(folder).st_ctime_ns  # ours was just removed
                        dead = newest_ns - seen.st_ctime_ns > _DEAD_NS
                    if dead and stat.S_ISREG(seen.st_mode):
                        os.unlink(name, dir_fd=folder)


def _changed_ns(file: os.stat_result) -> int:
    """When a file was changed. Unlike a modification time, no process can set a change time; some
    file systems have none."""
    return file.st_ctime_ns if file.st_ctime_ns > 0 else file.st_mtime_ns


def _step_of(kept_ns: int) -> int:
    """The step in which a file system keeps times, from how it kept ``_PROBE_NS``."""
    for step in _STEPS_NS:
        if kept_ns % step == 0 and abs(kept_ns - _PROBE_NS) < step:
            return step
    return 1  # it does not keep what is set, and so no order


def _reading(begin: tuple[int, int], now_ns: int, end: tuple[int, int], step_ns: int) -> Reading:
    """From both clocks of this machine before and after, and the file system's in between."""
    real_ns, boot_ns = (begin[0] + end[0]) // 2, (begin[1] + end[1]) // 2
    error_ns = (end[1] - begin[1]) // 2 + _TICK_NS + step_ns
    # Times are rounded down: half a step is what is missing in the middle.
    offset_ns = now_ns + (step_ns if step_ns > 1 else 0) // 2 - real_ns
    if abs(offset_ns) <= error_ns:
        offset_ns = 0
    return Reading(real_ns + offset_ns - boot_ns, offset_ns, error_ns, step_ns)
