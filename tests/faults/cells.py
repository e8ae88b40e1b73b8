"""Runs cells of the matrix: one job under one fault, and everything that must hold after it.

In processes of their own with the library of FaultyCalls preloaded; ``test_matrix`` starts them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kvshelf import metrics
from kvshelf.disk.layout import parse_temp_name
from kvshelf.disk.usetime import last_use
from kvshelf.engine import JobResult
from kvshelf.shelf import Shelf

from .matrix import STORES, Cell, Outcome
from .pool import calls_of_process
from .rules import ON_DISK, VICTIM, rule_of, rules_of
from .site import (
    CALM,
    CONTEXT,
    IDENTITY,
    PAGE_BYTES,
    PER_CHUNK,
    STALE,
    Site,
    age,
    engine_threads,
    eventually,
    flip_on_disk,
    key,
    lookup_threads_rest,
    open_files,
)

MANY, OTHER_KEY = 6, 9
SOURCE, TARGET, CHECK = 0, 16, 32  # first block of each use
AHEAD_ATTEMPTS = 200
# Of both engines of a site: I/O, lookups and a supervisor; the worker's has a copier if it stores
# behind.
THREADS = CALM.io_threads + 2 * (CALM.lookup_threads + 1)
# Deadlines of cells that run into them; elsewhere none is near, however busy the machine is.
HASTY = dataclasses.replace(
    CALM,
    load_timeout_seconds=1.5,
    load_stall_seconds=0.8,
    store_timeout_seconds=1.5,
    lookup_timeout_seconds=1.0,
)


def run_cell(cell: Cell, outcome: Outcome, packs: bool = False) -> int:
    """All runs of a cell; how many there were.

    Args:
        packs: whether the chunks are packed.

    Raises:
        AssertionError: something does not hold.
    """
    if cell.target == "chunk ahead":  # whether it is asked ahead depends on who is first
        attempts = 0
        while not Run(cell, outcome, 0, 0, packs).check():
            attempts += 1
            assert attempts < AHEAD_ATTEMPTS, f"{cell}: the fault never happened"
        return attempts + 1
    names = (cell.job, cell.operation, cell.target, cell.chunks, cell.durability)
    calls = _calls_made(*names, packs)
    assert calls, f"{cell}: the call is never made"
    in_turn = cell.times == "once" and cell.chunks == "one" and cell.fault not in ON_DISK
    turns = range(calls) if in_turn else range(1)
    for turn in turns:
        happened = Run(cell, outcome, turn, calls, packs).check()
        assert happened, f"{cell}, call {turn}: no fault happened"
    return len(turns)


@functools.cache
def _calls_made(
    job: str, operation: str, target: str, chunks: str, durability: str, packs: bool
) -> int:
    """How often a job without faults makes the call."""
    cell = Cell(job, operation, target, "EIO", chunks, "always", durability)
    run = Run(cell, Outcome("OK"), 0, 0, packs)
    return run.count_calls()


class Run:
    """One job under one fault."""

    def __init__(
        self, cell: Cell, outcome: Outcome, turn: int, calls: int, packs: bool = False
    ) -> None:
        self.cell, self.outcome, self.turn, self.calls = cell, outcome, turn, calls
        self.count = 1 if cell.chunks == "one" else MANY
        self.indices = list(range(self.count))
        self.victim = 0 if self.count == 1 else VICTIM
        # All files share one folder for their temp files, and none has its own name there.
        shared = cell.target == "temp folder" or (cell.operation, cell.target) == (
            "open",
            "temp file",
        )
        self.victims = self.count if shared and cell.times == "always" else 1
        config = HASTY if cell.fault == "hang" else CALM
        config = dataclasses.replace(
            config,
            write_behind=cell.job != "store-through",
            durability=type(config.durability)(cell.durability),
        )
        self.folder = Path(tempfile.mkdtemp(prefix="kvshelf-cell-"))
        self.site = Site(self.folder, calls_of_process(), config, packs=packs)

    def blocks(self, first: int) -> list[int]:
        return list(range(first, first + PER_CHUNK * self.count))

    def count_calls(self) -> int:
        try:
            self.prepare()
            action = dataclasses.replace(rule_of(self.cell, 0, "error", "EIO"), probability=0.0)
            self.site.calls.set(dataclasses.replace(action, skip=0), *rules_of(self.cell, 0)[1:])
            self.submit()
            self.site.idle()
            made = self.site.calls.matched()[0]
            return made - 1 if self.cell.target == "chunk again" else made
        finally:
            self.close()

    def check(self) -> bool:
        """Whether the fault happened; everything else is asserted."""
        site, cell = self.site, self.cell
        try:
            self.prepare()
            files = open_files()
            elsewhere = [i for i in range(48) if not self._may_change(i)]
            before = site.blocks.blocks(elsewhere)
            site.calls.set(*rules_of(cell, self.turn))
            result = self.submit()
            self.check_report(result)
            if cell.fault == "hang":
                self.check_late_bytes()
            happened = cell.fault in ON_DISK or site.calls.injected()[0] > 0
            self.check_calls()
            site.calls.set()
            site.idle()
            if cell.fault != "hang":
                self.equal(site.blocks.blocks(elsewhere) == before, True, "memory elsewhere")
            threads = THREADS + (1 if site.config.write_behind else 0)
            eventually(lambda: len(engine_threads()) == threads, f"{cell}: threads are lost")
            eventually(
                lambda: open_files() == files,
                f"{cell}: {open_files()} descriptors, {files} before",
            )
            self.check_files()
            self.check_later()
        finally:
            self.close()
        return happened

    def close(self) -> None:
        try:
            self.site.close()
        finally:
            shutil.rmtree(self.folder)

    def equal(self, is_: Any, must_be: Any, what: str) -> None:
        assert is_ == must_be, f"{self.cell}, call {self.turn}: {what}: {is_}, must be {must_be}"

    def _may_change(self, block: int) -> bool:
        return self.cell.job == "load" and block in self.blocks(TARGET)

    def prepare(self) -> None:
        site, cell = self.site, self.cell
        if cell.job not in STORES:
            statuses = self.at_leisure("store", self.blocks(SOURCE))
            self.equal(set(statuses), {"OK"}, "preparing")
            site.shelf.drain(10)
            # A lookup thread that asks, ahead of the store, whether the chunk is there may be at it
            # still: its calls must not meet the fault.
            eventually(lookup_threads_rest, f"{cell}: a lookup thread does not come to rest")
        if cell.fault in ON_DISK:
            self.lead_astray(cell.fault == "stale namespace")
        if cell.condition == "damaged":
            flip_on_disk(site.path(self.victim))
        if cell.condition == "folder":
            for index in self.indices:
                self.site.path(index).parent.mkdir(parents=True, exist_ok=True)
        if cell.condition == "no temp folder":
            (site.root / IDENTITY.folder / "tmp").rmdir()
        if cell.job == "touch":
            age([site.path(index) for index in self.indices])
        site.worker.take_report()
        site.manager.get_stats()
        site.log.lines.clear()

    def at_leisure(self, kind: str, blocks: list[int]) -> list[str]:
        """Statuses of a job without faults, whose deadlines a busy machine may miss."""
        statuses = ["TIMED_OUT"] * self.count
        for _ in range(20):
            result = self.site.transfer(kind, self.indices, blocks)
            for index, status in enumerate(result.statuses):
                if statuses[index] in ("TIMED_OUT", "DROPPED"):
                    statuses[index] = status.name
            if not {"TIMED_OUT", "DROPPED"} & set(statuses):
                break
        return statuses

    def lead_astray(self, stale: bool) -> None:
        """Puts a sound file of another key or namespace under the victim's name."""
        identity, index = (STALE, self.victim) if stale else (IDENTITY, OTHER_KEY)
        arrays = [[layer[:, :size] for layer, size in self._layers()]]
        with Shelf.of_arrays(self.site.root, identity, arrays, config=CALM) as other:
            statuses = other.store([(key(index), [44, 45], 0)])  # type: ignore[list-item]
            self.equal([status.name for status in statuses], ["OK"], "preparing")
            path = self.site.root / other.path_of(key(index))
            other.drain(10)
        self.site.path(self.victim).parent.mkdir(parents=True, exist_ok=True)
        path.rename(self.site.path(self.victim))

    def _layers(self) -> Any:
        return zip(self.site.blocks.layers, PAGE_BYTES, strict=True)

    def submit(self) -> JobResult | None:
        site, job = self.site, self.cell.job
        if job in STORES:
            return site.transfer("store", self.indices, self.blocks(SOURCE))
        if job == "load":
            return site.transfer("load", self.indices, self.blocks(TARGET))
        if job == "lookup":
            return site.lookup(self.indices)
        if job == "probe":
            return site.probe(self.indices)
        site.manager.touch([key(index) for index in self.indices], CONTEXT)
        assert site.lookups.drain(10), f"{self.cell}: touches do not end"
        return None

    def check_report(self, result: JobResult | None) -> None:
        if result is None:
            self.check_touched()
            return
        outcome = self.outcome
        got = Counter(
            (status.name, error)
            for status, error in zip(result.statuses, result.errnos, strict=True)
        )
        must = Counter({(outcome.status, outcome.error): self.victims})
        must["OK", 0] += self.count - self.victims
        self.equal(got, +must, "report")
        if self.cell.job == "load":
            for index, status in enumerate(result.statuses):
                if status.name == "OK":
                    self._same_bytes(index, TARGET)
        self.check_counters()
        self.check_log()

    def _same_bytes(self, index: int, first: int) -> None:
        blocks = self.site.blocks
        for i in range(PER_CHUNK):
            mine, source = (start + PER_CHUNK * index + i for start in (first, SOURCE))
            self.equal(blocks.block(mine) == blocks.block(source), True, f"bytes of {index}")

    def check_touched(self) -> None:
        renewed = []
        for index in self.indices:
            used = 1e-9 * last_use(self.site.path(index).stat()).ns
            renewed.append(used > time.time() - 1800)
        if self.cell.fault == "hang":  # those behind it wait; only their order suffers
            if self.cell.operation != "close":  # of the folder, before or after the time was set
                self.equal(renewed[self.victim], False, "renewed while it hangs")
            return
        must = [index != self.victim or self.outcome.status == "OK" for index in self.indices]
        self.equal(renewed, must, "times of use renewed")
        self.equal(self.site.lookups.stats().touched, sum(must), "touched")

    def check_counters(self) -> None:
        job, outcome = self.cell.job, self.outcome
        status = outcome.status.lower()
        good = self.count - self.victims + (self.victims if status == "ok" else 0)
        bad = self.count - good
        if job == "lookup":
            stats = self.site.manager.get_stats()
            counted = stats.reduce() if stats is not None else {}
            labels = {"OK": "hit", "NOT_FOUND": "miss", "TIMED_OUT": "timeout"}
            label = labels.get(outcome.status, "error")
            must = Counter({"hit": good})
            must[label] += bad
            self.equal(_labelled(counted, metrics.LOOKUPS), +must, "counter")
        report = self.site.worker.take_report()
        counters = dict(report.counters) if report is not None else {}
        got = {series: value for series, value in counters.items() if value}
        names = (metrics.LOAD_CHUNKS, metrics.LOAD_FAILURES, metrics.STORE_OUTCOMES)
        got = {series: value for series, value in got.items() if series[0] in names}
        expected: dict[tuple[str, tuple[str, ...]], float] = {}
        if job == "load":
            expected = {(metrics.LOAD_CHUNKS, ()): good, (metrics.LOAD_FAILURES, (status,)): bad}
        elif job in STORES:
            expected = {(metrics.STORE_OUTCOMES, ("published",)): good}
            expected |= {(metrics.STORE_OUTCOMES, (status,)): bad} if bad else {}
        self.equal(got, {series: value for series, value in expected.items() if value}, "counters")
        self.equal(self.site.stats().removed_bad, int(outcome.removed), "removed")

    def check_log(self) -> None:
        kind = "store" if self.cell.job in STORES else self.cell.job
        lines = self.site.log.lines
        if kind not in ("load", "store") or self.outcome.status == "OK":
            self.equal(lines, [], "log")
            return
        self.equal(len(lines), 1, f"log lines {lines}")
        must = f"kvshelf: {kind} failed ({self.outcome.status.lower()}): chunk "
        self.equal(lines[0][: len(must)], must, "log line")
        if self.outcome.error:
            self.equal(os.strerror(self.outcome.error) in lines[0], True, f"cause in {lines[0]}")

    def check_calls(self) -> None:
        """Whether the engine tried again, where one chunk and known calls make that visible."""
        cell = self.cell
        if cell.chunks == "many" or cell.fault in ON_DISK or not self.calls:
            return
        if cell.operation in ("open", "mkdir") and cell.fault == "ENOENT" and cell.times == "once":
            return  # a folder was absent anyway
        if cell.job == "probe" and self.turn == self.calls - 1:
            return  # at the end of the file nothing can be short
        made = self.site.calls.matched()[0] - (1 if cell.target == "chunk again" else 0)
        self.equal(made > self.calls, self.outcome.retried, f"tried again ({made}, {self.calls})")

    def check_late_bytes(self) -> None:
        """What hangs comes back, to memory that is somebody else's by then."""
        site = self.site
        if self.cell.target != "chunk ahead":
            self.equal(site.calls.waiting(), 1, "threads that hang")
        kept = site.blocks.blocks(range(48))
        site.blocks.randomize(99)
        before = site.blocks.blocks(range(48))
        site.calls.release()
        site.idle()
        self.equal(site.blocks.blocks(range(48)) == before, True, "memory after a hang")
        site.fill_blocks()
        sources = self.blocks(SOURCE)
        self.equal(site.blocks.blocks(sources) == [kept[i] for i in sources], True, "sources")

    def check_files(self) -> None:
        """No temp file but those that a cleaner knows; no name with damaged bytes."""
        site, outcome = self.site, self.outcome
        names = site.temp_files()
        self.equal(len(names), self.victims if outcome.temp_left else 0, f"temp files {names}")
        for name in names:
            self.equal(parse_temp_name(name) is not None, True, f"temp file {name} has an owner")
        damaged = site.damaged_files()
        self.equal(len(damaged), int(outcome.later == "CORRUPT"), f"damaged files {damaged}")

    def check_later(self) -> None:
        """What a load finds when nothing fails any more; then the shelf is whole again."""
        site, outcome = self.site, self.outcome
        for turn in ("later", "healed"):
            site.blocks.clear(self.blocks(CHECK))
            statuses = self.at_leisure("load", self.blocks(CHECK))
            must = Counter({outcome.later: self.victims}) if turn == "later" else Counter()
            must["OK"] += self.count - must.total()
            self.equal(Counter(statuses), +must, turn)
            for index, status in enumerate(statuses):
                if status == "OK":
                    self._same_bytes(index, CHECK)
            self.equal(site.damaged_files(), [], f"damaged files, {turn}")
            stored = self.at_leisure("store", self.blocks(SOURCE))
            self.equal(set(stored), {"OK"}, "stored anew")
            site.shelf.drain(10)


def _labelled(reduced: dict[str, Any], name: str) -> Counter[str]:
    """A counter by label from vLLM's reduced statistics."""
    found: Counter[str] = Counter()
    for series, value in reduced.items():
        if name in series:
            label = next((each for each in metrics.LOOKUP_RESULTS if each in series), series)
            found[label] += int(value)
    return found


def operations_seen(job: str, durability: str) -> set[str]:
    """Operations that a job without faults makes, whatever their targets."""
    cell = Cell(job, "open", "chunk", "EIO", "one", "once", durability)
    run = Run(cell, Outcome("OK"), 0, 0)
    try:
        run.prepare()
        run.site.idle()
        run.site.calls.set()
        run.submit()
        run.site.idle()
        return {operation for operation, count in run.site.calls.calls().items() if count}
    finally:
        run.close()
