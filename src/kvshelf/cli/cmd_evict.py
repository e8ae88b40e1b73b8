"""``kvshelf evict``: keeps a shelf within its limits, once or until it is stopped."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvshelf.cli.common import (
    CommandError,
    Exit,
    end_signals,
    existing_shelf,
    prepared_shelf,
    safe,
)
from kvshelf.cli.evict_options import OPTIONS, add_arguments, limits_of
from kvshelf.cli.evict_report import as_json
from kvshelf.errors import KvshelfError, ResourceError
from kvshelf.upkeep.evict.limits import Limits
from kvshelf.upkeep.evict.mends import with_mend
from kvshelf.upkeep.evict.report import Report, no_effect_text

if TYPE_CHECKING:
    from kvshelf.upkeep.evict.evictor import Evictor

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "remove the chunks least recently used while a limit is exceeded"
DESCRIPTION = """\
Looks at the root every second, and when a limit is exceeded removes the chunks that
were not used for longest until the low mark is reached. Runs until SIGTERM or SIGINT;
with --once until the root is within its limits. Several may run at once, also beside
engines: one evicts and the others wait, but --once does not wait. Without any limit,
90 percent of the file system and of its inodes may be used. See docs/explain/eviction.md.
Exit status 1 with --once: a limit is still exceeded, and nothing more may go, or what
went made no room; or some of the root could not be read or removed.
"""
# How long a hung step is waited for once the command is to end.
STOP_SECONDS = 2.0
REPEAT_SECONDS = 60.0


def run(options: argparse.Namespace) -> Exit:
    root = existing_shelf(options.root) if options.dry_run else prepared_shelf(options.root)
    return _Command(options, root, limits_of(options, root)).run()


class _Command:
    """Runs an engine's duty, and says what it hears of it (``duty.Listener``).

    The duty has a thread of its own, so that a signal is obeyed while a step hangs in the storage.
    """

    def __init__(self, options: argparse.Namespace, root: Path, limits: Limits) -> None:
        # Other commands do without the extension.
        from kvshelf.upkeep.evict.duty import EvictionDuty  # noqa: PLC0415

        self._options = options
        self._once = options.once or options.dry_run
        self._root = root
        self._duty = EvictionDuty(
            root,
            None,
            limits=limits,
            lease_seconds=options.lease_seconds,
            evictor=self._evictor,
            listener=self,
            by_turns=not self._once,
            interval_seconds=options.interval,
        )
        self._status = Exit.FINE
        self._failure: CommandError | BrokenPipeError | None = None
        self._said: dict[str, float] = {}
        self._sum: Report | None = None
        self._exposition: Any = None
        self._holder = ""  # the other process that was last said to hold the lease

    def _evictor(self, root: Path, limits: Limits, **more: Any) -> Evictor:
        from kvshelf.upkeep.evict.evictor import Evictor  # noqa: PLC0415

        options = self._options
        return Evictor(
            root,
            limits,
            files_per_second=options.rate,
            threads=options.threads,
            dry_run=options.dry_run,
            settle_seconds=options.settle_seconds,
            **more,
        )

    def run(self) -> Exit:
        server = self._serve()
        received: list[int] = []

        def stop(number: int, frame: object) -> None:
            del frame
            received.append(number)
            self._duty.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, *end_signals())}
        try:
            self._duty.start()
            while not self._duty.ended(0.2) and not received:
                pass
            if not self._duty.ended(STOP_SECONDS):
                print("kvshelf: the storage hangs: ended without it", file=sys.stderr, flush=True)
                os._exit(Exit.INTERRUPTED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if server is not None:
                server.shutdown()
        if self._failure is not None:
            raise self._failure
        return Exit.INTERRUPTED if received and self._once else self._status

    def _serve(self) -> Any:
        if self._options.metrics_port is None:
            return None
        from kvshelf.upkeep.evict.exposition import Exposition, serve  # noqa: PLC0415

        self._exposition = Exposition(os.fspath(self._root))
        try:
            return serve(self._exposition, self._options.metrics_port)
        except (OSError, OverflowError) as error:
            port = self._options.metrics_port
            raise CommandError(Exit.USAGE, f"--metrics-port {port}: {error}") from error

    def begins(self) -> None:
        """A step says more."""

    def waits(self, reason: str, holder: str) -> None:
        if self._exposition is not None:
            self._exposition.waits(reason, holder)
        if holder and holder != self._holder:
            text = f"{holder} holds the lease and evicts by its own limits; those given here"
            self._say(f"{self._root}: waits: {text} do not count until it ends", repeat=True)
        self._holder = holder

    def reported(self, report: Report) -> None:
        try:
            if self._take(report) and self._once:
                self._duty.stop()
        except BrokenPipeError as error:
            self._end(error)

    def stands_back(self, *, can_remove: bool) -> None:
        if self._exposition is not None:
            self._exposition.stands_back()
        if not can_remove:
            text = f"{self._root}: nothing can be removed: left the lease to another"
            self._say(text, repeat=False)

    def noted(self, cause: str, text: str) -> None:
        del cause
        self._say(text, repeat=False)

    def failed(self, part: str, error: Exception) -> None:
        is_mistake = not isinstance(error, (OSError, KvshelfError))
        if part == "evict" and is_mistake:
            self._end(CommandError(Exit.FINDINGS, f"{type(error).__name__}: {error}"))
        elif part == "evict" and self._once:
            lacks = isinstance(error, ResourceError)
            status = Exit.NO_RESOURCES if lacks else Exit.NO_SHELF
            self._end(CommandError(status, f"{self._root}: {error}"))
        else:
            self._fault(part, error)

    def _end(self, failure: CommandError | BrokenPipeError) -> None:
        self._failure = failure
        self._duty.stop()

    def _fault(self, what: str, error: Exception) -> None:
        if self._exposition is not None:
            self._exposition.fault(error)
        mend = with_mend(error, self._root).removeprefix(str(error))
        self._say(f"{self._root}: {what}: {error}; trying again{mend}", repeat=False)

    def _take(self, report: Report) -> bool:
        """Add a step to what is told; True if the shelf is at rest."""
        if self._exposition is not None:
            self._exposition.add(report)
        if self._sum is not None:
            report = replace(
                report,
                removed=self._sum.removed + report.removed,
                leftovers=self._sum.leftovers + report.leftovers,
                spared=self._sum.spared + report.spared,
                seconds=self._sum.seconds + report.seconds,
                cut_age_seconds=report.cut_age_seconds or self._sum.cut_age_seconds,
            )
        for number, times in report.faults.items():
            text = (
                f"{times} files or folders could not be looked at or removed: {os.strerror(number)}"
            )
            self._say(text, repeat=False)
        if report.clock_problem:
            self._say(f"the file system's clock is not known: {report.clock_problem}", repeat=False)
        self._complain(report)
        if self._once and (report.faults or report.unread or report.unfreed):
            self._status = Exit.FINDINGS
        resting = report.state.value in ("idle", "stuck", "blind", "stopped")
        self._sum = None if resting else report
        if not resting:
            return False
        for text in report.complaints():
            self._say(text, repeat=False)
        if report.state.value in ("stuck", "blind"):
            self._status = Exit.FINDINGS
            for need in report.needs if report.state.value == "stuck" else ():
                what = OPTIONS[need.reason]
                self._say(f"{what} is exceeded, and nothing more may go", repeat=False)
        if report.foreign:
            shown = ", ".join(map(safe, report.foreign_examples))
            self._say(
                f"kept {report.foreign} entries that are not kvshelf's: {shown}", repeat=False
            )
        if report.removed or report.leftovers or self._once:
            self._print(report)
        return True

    def _complain(self, report: Report) -> None:
        """What does not count, and what was of no use."""
        if report.unread:
            shown = ", ".join(map(safe, report.unread[:8]))
            self._say(f"may not be read, so it does not count and stays: {shown}", repeat=False)
        for reason, amount in report.unfreed.items():
            text = no_effect_text(reason, amount)
            self._say(f"{self._root}: {OPTIONS[reason]}: {text}", repeat=False)

    def _print(self, report: Report) -> None:
        if self._options.json:
            value = as_json(report, dry_run=self._options.dry_run)
            self._write(json.dumps(value, indent=1 if self._once else None) + "\n", sys.stdout)
            return
        shelf, removed = report.shelf, report.removed
        verb = "would remove" if self._options.dry_run else "removed"
        text = f"{verb} {removed.files} chunks, {removed.bytes / 1e9:.3f} GB"
        if report.leftovers:
            gone = report.leftovers
            text += f", {gone.files} temp files of dead writers, {gone.bytes / 1e9:.3f} GB"
        if report.cut_age_seconds is not None:
            text += f", unused for {report.cut_age_seconds:.0f} s or longer"
        left = f"on the shelf: {shelf.files} chunks, {shelf.bytes / 1e9:.3f} GB"
        self._say(f"{text}; {left}; {report.seconds:.1f} s", repeat=True)

    def _say(self, text: str, *, repeat: bool) -> None:
        """A line for people; the same at most once a minute, unless it may be repeated."""
        now = time.monotonic()
        key = re.sub(r"\d+", "", text)
        if not repeat and now - self._said.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        self._said[key] = now
        stream = sys.stderr if self._options.json or not repeat else sys.stdout
        stamp = "" if self._once else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
        self._write(f"{stamp}{safe(text)}\n", stream)

    def _write(self, text: str, stream: TextIO) -> None:
        """A daemon goes on when its log's disk is full, or whoever read it is gone."""
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            if self._once:
                raise
