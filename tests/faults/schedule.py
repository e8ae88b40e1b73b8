"""One random fault schedule: shelves that store, load, look up and touch the same few keys while
system calls fail, hang and lie at random; every byte that is loaded must be what its key says.

The seed decides everything but the order in which threads run. A *solo* schedule (even seeds) has
one shelf with one thread of each kind and nothing that depends on time, so that a seed gives the
same calls, faults and outcomes in every run; a *crowd* (odd seeds) has several shelves at once and
calls that hang. In processes that were started with the library of FaultyCalls preloaded.
"""

from __future__ import annotations

import functools
import hashlib
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kvshelf import EngineConfig, Identity, make_key
from kvshelf.disk.keys import ChunkKey
from kvshelf.engine import Durability, FileStatus, JobResult, Phase
from kvshelf.shelf import Chunk, Shelf
from kvshelf.testing import Blocks
from tests.harness.faulty_calls import FaultyCalls, Rule

PAGE_BYTES = (4096, 1000)
PER_CHUNK = 2
CHUNK_BYTES = PER_CHUNK * sum(PAGE_BYTES)
KEYS = 6
BLOCKS = 3 * PER_CHUNK * KEYS  # what is stored, where it is loaded to, and what nobody may touch
IDENTITY = Identity({"model": "schedules"})
KINDS = ("store", "load", "lookup", "touch", "probe")
# A job must end by its own deadline; the rest is for a busy machine.
PATIENCE_SECONDS = 30.0
FAULTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("open", "error", ("EIO", "ESTALE", "ENOSPC", "EACCES", "ENOENT", "EMFILE", "EINTR")),
    ("stat", "error", ("EIO", "ESTALE", "EACCES", "ENOENT", "EINTR")),
    ("fstat", "error", ("EIO", "ESTALE", "EINTR")),
    ("read", "error", ("EIO", "ESTALE", "EINTR")),
    ("read", "short", ("EIO",)),
    ("read", "flip", ("EIO",)),
    ("write", "error", ("EIO", "ENOSPC", "EDQUOT", "ESTALE", "EINTR")),
    ("write", "short", ("EIO",)),
    ("write", "flip", ("EIO",)),
    ("write", "torn", ("EIO",)),
    ("allocate", "error", ("ENOSPC", "EOPNOTSUPP", "EINTR")),
    ("fsync", "error", ("EIO", "ENOSPC")),
    ("rename", "error", ("EIO", "ESTALE", "ENOENT", "EEXIST", "EINVAL", "EINTR")),
    ("rename", "error after", ("EIO", "EEXIST", "ENOENT")),
    ("link", "error", ("EIO", "EEXIST", "EPERM", "ENOENT")),
    ("link", "error after", ("EIO",)),
    ("plain rename", "error", ("EIO", "ENOENT")),
    ("mkdir", "error", ("EIO", "EEXIST", "ENOENT", "ENOSPC")),
    ("mkdir", "error after", ("EIO",)),
    ("unlink", "error", ("EIO", "EACCES", "ENOENT")),
    ("unlink", "error after", ("EIO",)),
    ("utimens", "error", ("EIO", "EACCES", "EPERM")),
    ("close", "error after", ("EIO", "ENOSPC")),
)
HANGS = ("open", "stat", "read", "write", "fsync", "rename", "mkdir", "unlink", "utimens", "close")


def random_rules(
    r: random.Random, *, hangs: bool = False, without: tuple[str, ...] = (), path: str = "*"
) -> list[Rule]:
    """None, or some faults at random; ``without`` operations that are left alone."""
    rules = []
    for _ in range(r.choice((0, 1, 1, 2, 3))):
        seed, probability = r.getrandbits(32), r.choice((0.05, 0.2, 0.5, 1.0))
        if hangs and r.random() < 0.4:
            count, skip = r.choice((1, 2)), r.randint(0, 10)
            rules.append(Rule(r.choice(HANGS), "hang", path=path, count=count, skip=skip))
            continue
        operation, action, errors = r.choice([each for each in FAULTS if each[0] not in without])
        error = r.choice(errors)
        if error == "EINTR":
            probability = min(probability, 0.5)  # an interrupted call is made again
        rules.append(Rule(operation, action, error, path=path, probability=probability, seed=seed))
    return rules


def name_of(rule: Rule) -> str:
    """Of the fault."""
    names = {"error": rule.error, "error after": f"done, but {rule.error}"}
    return names.get(rule.action, rule.action)


class ScheduleError(AssertionError):
    """Something does not hold; says the seed."""


@dataclass(slots=True)
class Done:
    """What a schedule did.

    Attributes:
        statuses: of every chunk of every job, by kind and status.
        faults: how often each (operation, fault) happened.
        verified_bytes: loaded and compared.
        digest: of all outcomes in order, and of all faults; of a solo schedule the same each run.
    """

    seed: int
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    jobs: int = 0
    verified_bytes: int = 0
    digest: str = ""


def key(index: int) -> ChunkKey:
    return make_key(bytes([index]) + bytes(31), 0)


@functools.cache
def content() -> Blocks:
    """What every key says: block ``PER_CHUNK * index + i`` is block i of key ``index``."""
    return Blocks(PAGE_BYTES, PER_CHUNK * KEYS, seed=4711)


def blocks_of(index: int, first: int = 0) -> list[int]:
    begin = first + PER_CHUNK * index
    return list(range(begin, begin + PER_CHUNK))


class Member:
    """One shelf with its memory; used by one thread at a time."""

    def __init__(self, schedule: Schedule, config: EngineConfig) -> None:
        self.schedule = schedule
        self.blocks = Blocks(PAGE_BYTES, BLOCKS, seed=1)
        for layer, right, size in zip(
            self.blocks.layers, content().layers, PAGE_BYTES, strict=True
        ):
            layer[: len(right), :size] = right[:, :size]
        self.shelf = Shelf(schedule.root, IDENTITY, groups=[self.blocks.describe()], config=config)
        self.job = 0
        self.touches = 0
        self.log: list[str] = []

    def run(self, kind: str, indices: list[int]) -> None:
        """One job and its end; raises ScheduleError."""
        self.job += 1
        if kind == "touch":
            self.touches += len(indices)
            self.shelf.touch([key(index) for index in indices])
            self.schedule.demand(self.shelf.drain(PATIENCE_SECONDS), "touches do not end")
            return
        targets = [i for index in indices for i in blocks_of(index, PER_CHUNK * KEYS)]
        if kind == "load":
            self.blocks.clear(targets)
        elsewhere = [i for i in range(BLOCKS) if kind != "load" or i not in targets]
        before = self._digest(elsewhere)
        self._submit(kind, indices)
        ended = self.shelf.wait([self.job], Phase.FINISHED, PATIENCE_SECONDS)
        self.schedule.demand(ended, f"{kind} {indices} does not end")
        report = next(r for r in self.shelf.poll() if r.phase is Phase.FINISHED)
        self.schedule.demand(self._digest(elsewhere) == before, f"{kind} {indices}: memory")
        self._check(kind, indices, report)

    def _submit(self, kind: str, indices: list[int]) -> None:
        keys = [key(index) for index in indices]
        if kind == "lookup":
            self.shelf.submit_lookup(self.job, keys)
        elif kind == "probe":
            self.shelf.submit_probe(self.job, keys, 1 << 20)
        elif kind == "store":
            self.shelf.submit_store(self.job, [Chunk(key(i), blocks_of(i)) for i in indices])
        else:
            first = PER_CHUNK * KEYS
            chunks = [Chunk(key(i), blocks_of(i, first)) for i in indices]
            self.shelf.submit_load(self.job, chunks)

    def _check(self, kind: str, indices: list[int], report: JobResult) -> None:
        demand, done = self.schedule.demand, self.schedule.done
        demand(len(report.statuses) == len(indices), "a job lacks reports")
        good = 0
        for index, status, error in zip(indices, report.statuses, report.errnos, strict=True):
            demand((error != 0) == (status is FileStatus.IO_ERROR), f"{status} with errno {error}")
            good += status is FileStatus.OK
            if kind == "load" and status is FileStatus.OK:
                self._compare(index)
        if kind == "load":
            demand(report.payload_bytes == good * CHUNK_BYTES, "bytes of a load")
        with self.schedule.lock:
            done.jobs += 1
            done.statuses.update((kind, status.name) for status in report.statuses)
        names = ",".join(status.name for status in report.statuses)
        self.log.append(f"{kind}{indices}{names}{report.errnos}")

    def _compare(self, index: int) -> None:
        mine, right = blocks_of(index, PER_CHUNK * KEYS), blocks_of(index)
        for i in range(PER_CHUNK):
            got, must = self.blocks.block(mine[i]), content().block(right[i])
            if got != must:
                wrong = [at for at in range(len(must)) if got[at] != must[at]]
                self.schedule.demand(
                    False,
                    f"job {self.job}, key {index}, block {i}: {len(wrong)} wrong bytes, "
                    f"the first at {wrong[0]}: {got[wrong[0]]:#x}, must be {must[wrong[0]]:#x}",
                )
        with self.schedule.lock:
            self.schedule.done.verified_bytes += CHUNK_BYTES

    def _digest(self, ids: list[int]) -> bytes:
        parts = [layer[ids].tobytes() for layer in self.blocks.layers]
        return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


class Schedule:
    """One seed's run on ``root``, a directory of its own."""

    def __init__(self, seed: int, root: Path, calls: FaultyCalls, *, planted: bool) -> None:
        self.seed, self.root, self.calls = seed, root, calls
        self.random = random.Random(f"schedule {seed}")
        self.is_solo = seed % 2 == 0
        self.hangs = not self.is_solo and self.random.random() < 0.2
        self.done = Done(seed)
        self.lock = threading.Lock()
        self._planted = planted
        self._rules: list[Rule] = []
        self._temp_may_stay = False
        calls.set()
        calls.root(root)
        self._trace = 0
        config = self._config()
        self.behind = config.write_behind
        self.members = [
            Member(self, config) for _ in range(1 if self.is_solo else self.random.choice((2, 3)))
        ]

    def demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise ScheduleError(f"seed {self.seed}: {what}")

    def run(self) -> Done:
        try:
            for _ in range(self.random.randint(3, 8)):
                self._round()
            self._settle()
            self._heal()
        finally:
            self.calls.set()
            closed = [member.shelf.close(PATIENCE_SECONDS) for member in self.members]
        self.demand(all(closed), "a shelf does not close")
        self.demand(all(m.blocks.guards_are_whole() for m in self.members), "guards")
        text = "\n".join([*(line for m in self.members for line in m.log), f"{self._trace:x}"])
        self.done.digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return self.done

    def _config(self) -> EngineConfig:
        r = self.random
        hasty = self.hangs
        return EngineConfig(
            io_threads=1 if self.is_solo else 3,
            load_only_threads=0 if self.is_solo else 1,
            lookup_threads=1 if self.is_solo else 2,
            piece_bytes=r.choice((4096, 8192, 65536)),
            step_bytes=r.choice((4096, 8192)),
            write_buffer_bytes=r.choice((4 << 16, 1 << 20)),
            write_behind=r.random() < 0.5,
            durability=r.choice(tuple(Durability)),
            touch_interval_seconds=0.0,
            verify=not self._planted,
            store_queue_seconds=0.2 if hasty else 60.0,
            store_timeout_seconds=0.2 if hasty else 60.0,
            load_timeout_seconds=0.3 if hasty else 60.0,
            load_stall_seconds=0.1 if hasty else 60.0,
            lookup_timeout_seconds=0.1 if hasty else 60.0,
        )

    def _round(self) -> None:
        """New faults, then some jobs of every member, at once."""
        self._collect()
        # Who asks first whether a file is there, and whether at all, is a matter of time.
        without = ("stat",) if self.is_solo and self.behind else ()
        self._rules = random_rules(self.random, hangs=self.hangs, without=without)
        self.calls.set(*self._rules)
        plans = [
            [(self.random.choice(KINDS), self._keys()) for _ in range(self.random.randint(1, 4))]
            for _ in self.members
        ]
        failures: list[BaseException] = []

        def work(member: Member, plan: list[tuple[str, list[int]]]) -> None:
            try:
                for kind, indices in plan:
                    member.run(kind, indices)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=work, args=pair)
            for pair in zip(self.members[1:], plans[1:], strict=True)
        ]
        for thread in threads:
            thread.start()
        work(self.members[0], plans[0])
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _keys(self) -> list[int]:
        return sorted(self.random.sample(range(KEYS), self.random.randint(1, KEYS)))

    def _collect(self) -> None:
        """Count what the rules in force have done."""
        hit = self.calls.injected()
        for rule, times in zip(self._rules, hit, strict=True):
            if times:
                self.done.faults[rule.operation, name_of(rule)] += times
            # A temp file that cannot be removed stays, for a cleaner.
            self._temp_may_stay |= times > 0 and rule.operation in ("unlink", "open", "mkdir")
            self._temp_may_stay |= times > 0 and rule.action == "hang"
        self._trace = (self._trace * 31 + self.calls.trace()) % (1 << 64)

    def _settle(self) -> None:
        """No more faults: everything comes to rest and adds up."""
        self._collect()
        self._rules = []
        self.calls.set()
        for member in self.members:
            self.demand(member.shelf.drain(PATIENCE_SECONDS), "does not come to rest")
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (stats := member.shelf.stats()).hung_threads or stats.write_buffer_used_bytes:
                self.demand(time.monotonic() < deadline, f"does not come to rest: {stats}")
                time.sleep(0.001)
            waiting = stats.queued_loads, stats.queued_stores, stats.queued_lookups
            self.demand(waiting == (0, 0, 0), f"files are queued still: {stats}")
            self.demand(stats.touched <= member.touches, f"more touches than asked for: {stats}")

    def _heal(self) -> None:
        """The shelf works again: what is damaged is found, removed and stored anew."""
        everything = list(range(KEYS))
        member = self.members[0]
        temp = self.root / IDENTITY.folder / "tmp"
        left = [path.name for path in temp.glob("*")]
        self.demand(not left or self._temp_may_stay, f"temp files {left}")
        for _ in range(20):
            before = Counter(self.done.statuses)
            member.run("load", everything)
            member.run("store", everything)
            news = self.done.statuses - before
            if news == Counter({("load", "OK"): KEYS, ("store", "OK"): KEYS}):
                break
        else:
            self.demand(False, f"does not work again: {dict(news)}")
        for other in self.members[1:]:
            other.run("load", everything)


def run_schedule(seed: int, calls: FaultyCalls, *, planted: bool = False) -> Done:
    """Raises ScheduleError."""
    folder = Path(tempfile.mkdtemp(prefix="kvshelf-schedule-"))
    try:
        return Schedule(seed, folder / "shelf", calls, planted=planted).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
