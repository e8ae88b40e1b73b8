"""``kvshelf evict``: keeps a shelf within its limits, once or until it is stopped."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
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
    status_of,
)
from kvshelf.cli.evict_options import OPTIONS, add_arguments, limits_of
from kvshelf.cli.evict_report import as_json
from kvshelf.disk.threads import start
from kvshelf.errors import KvshelfError

if TYPE_CHECKING:
    from kvshelf.upkeep.evict import Evictor, OnRemoved, Report

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "remove the chunks least recently used while a limit is exceeded"
DESCRIPTION = """\
Looks at the root every second, and when a limit is exceeded removes the chunks that
were not used for longest until the low mark is reached. Runs until SIGTERM or SIGINT;
with --once until the root is within its limits. Several may run at once, also beside
engines: one evicts and the others wait, but --once does not wait. Without any limit,
90 percent of the file system and of its inodes may be used. See docs/eviction.md.
Exit status 1 with --once: a limit is still exceeded, and nothing more may go, or what
went made no room; or some of the root could not be read or removed.
"""
# How long a hung step is waited for once the command is to end.
STOP_SECONDS = 2.0
REPEAT_SECONDS = 60.0


def run(options: argparse.Namespace) -> Exit:
    from kvshelf.upkeep.evict import Evictor  # noqa: PLC0415 - other commands do without the extension

    root = existing_shelf(options.root) if options.dry_run else prepared_shelf(options.root)
    limits = limits_of(options, root)

    def make(on_removed: OnRemoved) -> Evictor:
        return Evictor(
            root,
            limits,
            files_per_second=options.rate,
            threads=options.threads,
            dry_run=options.dry_run,
            on_removed=on_removed,
            settle_seconds=options.settle_seconds,
        )

    return _Command(options, root, make).run()


class _Command:
    """Steps in a thread, so that a signal is obeyed while a step hangs in the storage."""

    def __init__(
        self, options: argparse.Namespace, root: Path, make: Callable[[OnRemoved], Evictor]
    ) -> None:
        self._options = options
        self._once = options.once or options.dry_run
        self._root = root
        from kvshelf.upkeep.evict.turn import Turn  # noqa: PLC0415

        self._make = make
        self._turn = Turn(root, lease_seconds=options.lease_seconds, on_fault=self._fault)
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._evictor: Evictor | None = None
        self._status = Exit.FINE
        self._failure: CommandError | BrokenPipeError | None = None
        self._said: dict[str, float] = {}
        self._sum: Report | None = None
        self._exposition: Any = None

    def run(self) -> Exit:
        server = self._serve()
        received: list[int] = []

        def stop(number: int, frame: object) -> None:
            del frame
            received.append(number)
            self._stop.set()
            if self._evictor is not None:
                self._evictor.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, *end_signals())}
        worker = threading.Thread(target=self._work, name="kvs-evictor", daemon=True)
        start(worker)
        try:
            while not self._ended.wait(0.2) and not received:
                pass
            if not self._ended.wait(STOP_SECONDS):
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

        self._exposition = Exposition()
        try:
            return serve(self._exposition, self._options.metrics_port)
        except (OSError, OverflowError) as error:
            port = self._options.metrics_port
            raise CommandError(Exit.USAGE, f"--metrics-port {port}: {error}") from error

    def _work(self) -> None:
        try:
            self._loop()
        except (CommandError, BrokenPipeError) as error:
            self._failure = error
        except BaseException as error:  # the main thread must hear of it
            self._failure = CommandError(Exit.FINDINGS, f"{type(error).__name__}: {error}")
        finally:
            if not self._once:
                self._turn.leave()
            self._ended.set()

    def _fault(self, what: str, error: Exception) -> None:
        from kvshelf.upkeep.evict.mends import mend_of  # noqa: PLC0415

        if self._exposition is not None:
            self._exposition.fault(error)
        mend = mend_of(error, self._root)
        mend = f"; {mend}" if mend else ""
        self._say(f"{self._root}: {what}: {error}; trying again{mend}", repeat=False)

    def _waits(self) -> None:
        """It is another's turn, or nobody's, because the lease cannot be used."""
        if self._exposition is not None and not self._turn.stands_back:
            error = self._turn.failure
            self._exposition.waits("" if error is None else f"the lease cannot be used: {error}")
        self._stop.wait(self._options.interval)

    def _loop(self) -> None:
        while not self._stop.is_set():
            if not self._once and not self._turn.is_ours():
                self._waits()
                continue
            try:
                if self._evictor is None:
                    self._evictor = self._make(self._turn.removed)
                if not self._once and self._turn.is_room_wanted():
                    self._say(f"{self._root}: stores fail for lack of room: evicting", repeat=False)
                    self._evictor.wants_room()
                report = self._evictor.step()
            except (OSError, KvshelfError) as error:
                if self._once:
                    raise CommandError(status_of(error), f"{self._root}: {error}") from error
                self._fault("evict", error)
                self._evictor = None
                self._turn.stand_back()
                continue
            if self._take(report) and self._once:
                return
            self._hand_over(report)
            self._stop.wait(report.wait_seconds(self._options.interval))

    def _hand_over(self, report: Report) -> None:
        """Another evictor may be able to do what this one cannot."""
        if self._once or not report.gives_way:
            self._turn.succeeded()
            return
        self._say(f"{self._root}: nothing can be removed: left the lease to another", repeat=False)
        self._turn.stand_back()

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
            from kvshelf.upkeep.evict.report import no_effect_text  # noqa: PLC0415

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
