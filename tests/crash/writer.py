"""A server that forks writers which are killed at a given call, or whose calls are written down.

Runs with preload.cpp before the C library. Each line on standard input is a ``Plan`` as JSON; the
answer is a line {"exit": ..., "calls": ..., "pid": ...}. Forking is what makes a thousand writers
take half a minute: Python, NumPy and the engine are loaded once.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # the server has no test runner that sets the path
    sys.path.insert(0, str(Path(__file__).parents[2]))

from kvshelf.disk.layout import TempOwner, owner_is_dead
from kvshelf.disk.this_process import start_ticks_of, this_owner

BEFORE, AFTER, TORN = range(3)  # as preload.cpp
NO_RENAME2, NO_LINK = 1, 2


@dataclass
class Plan:
    """What a writer does, and when it dies.

    Attributes:
        kill_at: number of the call at which it is killed, from 1; 0: never.
        when: BEFORE, AFTER, or TORN: half of a write is written.
        faults: NO_RENAME2, NO_LINK: calls that the file system does not know.
        trace: file for what its calls did.
        seconds: it is stopped, looked at and killed so long after its start; 0: never.
    """

    root: str
    kill_at: int = 0
    when: int = BEFORE
    faults: int = 0
    trace: str = ""
    seconds: float = 0.0
    durability: str = "none"
    write_behind: bool = True
    direct: str = "off"
    ordered: bool = True
    one_by_one: bool = True


def write(plan: Plan, library: ctypes.CDLL) -> None:
    """The writer: opens the shelf and stores all chunks."""
    from kvshelf.engine import Direct, Durability, FileStatus
    from tests.crash import chunks

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    trace = os.open(plan.trace, flags, 0o600) if plan.trace else -1
    library.crash_arm(
        plan.root.encode(), ctypes.c_long(plan.kill_at), plan.when, plan.faults, trace
    )
    settings = {
        **(chunks.ORDERED if plan.ordered else chunks.MANY),
        "durability": Durability(plan.durability),
        "direct": Direct(plan.direct),
        "write_behind": plan.write_behind,
    }
    with chunks.open_shelf(Path(plan.root), chunks.CONTENT, **settings) as shelf:
        every = range(chunks.CHUNKS)
        for group in [[index] for index in every] if plan.one_by_one else [every]:
            assert set(shelf.store([chunks.chunk(index) for index in group])) == {FileStatus.OK}
            for index in group:
                library.crash_mark(f"stored {index}".encode())


def judge_stopped(pid: int) -> None:
    """A writer that only stands still is alive: its temp files are not to be cleaned."""
    here = this_owner()
    start = start_ticks_of(pid)  # a zombie's too: nobody has waited for it
    assert start is not None
    owner = TempOwner(here.host, here.boot, here.pids, pid, start)
    assert owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of) is False


def serve() -> None:
    library = ctypes.CDLL(None)
    library.crash_calls.restype = ctypes.c_long
    from tests.crash import chunks  # noqa: F401 - loaded once, before the writers are forked

    for line in sys.stdin:
        plan = Plan(**json.loads(line))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.write(writer, b" ")
            try:
                write(plan, library)
            except BaseException as error:
                sys.stderr.write(f"writer: {error!r}\n")
                sys.stderr.flush()
                os._exit(1)
            os.write(writer, str(library.crash_calls()).encode())
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        if plan.seconds:
            time.sleep(plan.seconds)
            os.kill(pid, signal.SIGSTOP)
            judge_stopped(pid)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        calls = os.read(reader, 100)
        os.close(reader)
        answer = {"exit": os.waitstatus_to_exitcode(status), "calls": int(calls or 0), "pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Writers:
    """The server, seen from a test."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "LD_PRELOAD": str(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, plan: Plan) -> dict[str, int]:
        """The writer's exit code (minus the signal), its calls if it came to the end, its pid."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asdict(plan)) + "\n")
        process.stdin.flush()
        answer: dict[str, int] = json.loads(process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=30)


def build(folder: Path) -> Path:
    """The library of preload.cpp."""
    library = folder / "preload.so"
    source = Path(__file__).with_name("preload.cpp")
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


if __name__ == "__main__":
    serve()
