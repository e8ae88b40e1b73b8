"""The mount with faults is a file system without them, and each fault happens as asked for."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import faulty_mount
from tests.harness.faults import OPERATIONS
from tests.harness.faulty_mount import FaultyMount, why_not
from tests.harness.quirk_mount import rename_noreplace

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

DATA = bytes(range(256)) * 4096
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyMount]:
    folder = tmp_path_factory.mktemp("faultfs")
    # For other users. Below /tmp all are this test run's.
    for each in (folder, *folder.parents):
        if len(each.parts) > 2:
            each.chmod(0o755)
    mount = FaultyMount(folder)
    yield mount
    mount.close()


@pytest.fixture
def mount(made: FaultyMount, request: pytest.FixtureRequest) -> Iterator[FaultyMount]:
    """Without faults, and with one file."""
    made.set()
    (made.path / "file").write_bytes(DATA)
    yield made
    made.set()
    subprocess.run(f"rm -rf {made.path}/*", shell=True, check=True)


def error_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_without_faults_it_is_a_file_system(mount: FaultyMount) -> None:
    file = mount.path / "folder" / "file"
    file.parent.mkdir(mode=0o2770)
    file.write_bytes(DATA)
    assert file.read_bytes() == (mount.source / "folder/file").read_bytes() == DATA
    assert file.stat().st_ino == (mount.source / "folder/file").stat().st_ino
    os.utime(file, ns=(1_600_000_000_123_456_789, 1_600_000_001_000_000_001))
    assert file.stat().st_mtime_ns == 1_600_000_001_000_000_001
    before = time.time() - 1
    os.utime(file)
    assert file.stat().st_atime > before
    os.link(file, mount.path / "linked")
    assert file.stat().st_nlink == 2
    assert rename_noreplace(mount.path / "linked", file) == errno.EEXIST
    assert rename_noreplace(mount.path / "linked", mount.path / "free") == 0
    with (mount.path / "free").open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 2 << 20)
        os.fsync(opened.fileno())
        assert os.fstat(opened.fileno()).st_size == 2 << 20
        os.ftruncate(opened.fileno(), 4096)
    assert (mount.path / "free").stat().st_size == 4096
    assert error_of(lambda: os.close(os.open(file, os.O_CREAT | os.O_EXCL))) == errno.EEXIST
    (mount.path / "link").symlink_to("file")
    assert (mount.path / "link").read_bytes() == DATA
    names = ["file", "folder", "free", "link"]
    assert sorted(entry.name for entry in os.scandir(mount.path)) == names
    file.unlink()
    file.parent.rmdir()
    assert error_of(file.stat) == errno.ENOENT
    volume = os.statvfs(mount.path)
    assert volume.f_blocks == os.statvfs(mount.source).f_blocks


def test_a_file_that_was_replaced_or_removed_stays_readable(mount: FaultyMount) -> None:
    with (mount.path / "file").open("rb") as replaced:
        (mount.path / "new").write_bytes(b"new")
        (mount.path / "new").rename(mount.path / "file")
        assert replaced.read() == DATA and os.fstat(replaced.fileno()).st_size == len(DATA)
    with (mount.path / "file").open("rb") as removed:
        (mount.path / "file").unlink()
        assert removed.read() == b"new" and os.fstat(removed.fileno()).st_size == 3
        assert list(mount.path.iterdir()) == []
    assert list(mount.source.iterdir()) == []


def test_a_name_that_is_replaced_is_never_absent(mount: FaultyMount) -> None:
    over = threading.Event()

    def replace() -> None:
        while not over.is_set():
            (mount.path / "new").write_bytes(DATA)
            (mount.path / "new").rename(mount.path / "file")

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            try:
                assert (mount.path / "file").read_bytes() == DATA
            except OSError as error:
                # libfuse's word for a node that was replaced since its lookup. The kernel tries
                # once more, and gives up if it is replaced again. It is not absent.
                assert error.errno == errno.ESTALE
    finally:
        over.set()
        thread.join()


def test_any_alignment_passes_without_the_page_cache(mount: FaultyMount) -> None:
    handle = os.open(mount.path / "file", os.O_RDWR | os.O_DIRECT)
    assert os.pread(handle, 100, 7) == DATA[7:107]
    (mount.source / "file").write_bytes(b"other" * 100)
    assert os.pread(handle, 5, 0) == b"other"  # at once: nothing is kept
    os.close(handle)


def test_entries_belong_to_who_made_them(mount: FaultyMount) -> None:
    shared = mount.path / "shared"
    shared.mkdir()
    os.chown(shared, 1000, 2000)
    shared.chmod(0o2777)
    line = ["setpriv", "--reuid=1500", "--regid=1500", "--clear-groups"]
    line += ["sh", "-c", f"umask 022; mkdir {shared}/made; echo x > {shared}/file"]
    subprocess.run(line, check=True)
    for name, mode in (("made", 0o2755), ("file", 0o644)):
        found = (shared / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1500, 2000, mode), name


CALLS: dict[str, Callable[[Path], object]] = {
    "stat": lambda at: (at / "file").stat(),
    "open": lambda at: os.close(os.open(at / "file", os.O_RDONLY)),
    "create": lambda at: os.close(os.open(at / "new", os.O_CREAT | os.O_WRONLY)),
    "rename": lambda at: (at / "file").rename(at / "new"),
    "link": lambda at: os.link(at / "file", at / "new"),
    "unlink": lambda at: (at / "file").unlink(),
    "mkdir": lambda at: (at / "new").mkdir(),
    "rmdir": lambda at: ((at / "e").mkdir(), (at / "e").rmdir()),
    "readdir": lambda at: list(at.iterdir()),
    "statfs": os.statvfs,
    "utimens": lambda at: os.utime(at / "file"),
    "truncate": lambda at: os.truncate(at / "file", 3),
    "chmod": lambda at: (at / "file").chmod(0o600),
    "read": lambda at: (at / "file").read_bytes(),
    "write": lambda at: (at / "file").write_bytes(b"x"),
    "fsync": lambda at: with_open(at / "file", os.fsync),
    "close": lambda at: os.close(os.open(at / "file", os.O_WRONLY)),
    "allocate": lambda at: with_open(at / "file", lambda number: os.posix_fallocate(number, 0, 9)),
}


def with_open(path: Path, work: Callable[[int], object]) -> None:
    with path.open("r+b", buffering=0) as opened:
        work(opened.fileno())


@pytest.mark.parametrize("number", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("operation", CALLS)
def test_each_call_fails_as_asked_for(mount: FaultyMount, operation: str, number: str) -> None:
    mount.set(**{operation: number})
    assert error_of(lambda: CALLS[operation](mount.path)) == getattr(errno, number)
    assert mount.injected()[operation] >= 1
    mount.set(**dict.fromkeys(set(CALLS) - {operation, "stat"}, number))
    if operation in ("stat", "statfs", "readdir", "rename", "unlink", "mkdir", "utimens"):
        CALLS[operation](mount.path)  # the others' errors are not its


def test_every_operation_is_tried() -> None:
    assert {*CALLS, "rename_after"} == set(OPERATIONS)


def test_a_rename_is_done_and_denied(mount: FaultyMount) -> None:
    mount.set(rename_after="EIO")
    assert error_of(lambda: (mount.path / "file").rename(mount.path / "new")) == errno.EIO
    assert [each.name for each in mount.source.iterdir()] == ["new"]


def test_only_what_matches(mount: FaultyMount) -> None:
    (mount.path / "sub").mkdir()
    (mount.path / "sub/one.kv").write_bytes(DATA)
    (mount.path / "one.kv").write_bytes(DATA)
    mount.set(match="*.kv", read="EIO")
    (mount.path / "file").read_bytes()
    for name in ("sub/one.kv", "one.kv"):
        assert error_of((mount.path / name).read_bytes) == errno.EIO
    mount.set(match="/sub/*", read="EIO")
    (mount.path / "one.kv").read_bytes()
    assert error_of((mount.path / "sub/one.kv").read_bytes) == errno.EIO
    mount.set(match="*.kv", rename="EIO")
    assert error_of(lambda: (mount.path / "file").rename(mount.path / "new.kv")) == errno.EIO
    (mount.path / "file").rename(mount.path / "new")


def test_a_call_in_the_middle(mount: FaultyMount) -> None:
    mount.set(unlink="EIO", skip=1, count=2)
    for name in "abcd":
        (mount.path / name).touch()
    assert [error_of((mount.path / each).unlink) for each in "abcd"] == [0, 5, 5, 0]


def test_one_seed_one_choice(mount: FaultyMount) -> None:
    def choices(seed: int) -> list[int]:
        mount.set(statfs="EIO", probability=0.5, seed=seed)
        return [error_of(lambda: os.statvfs(mount.path)) for _ in range(64)]

    first = choices(1)
    assert 16 < first.count(errno.EIO) < 48
    assert choices(1) == first != choices(2)


def test_short_and_wrong_reads(mount: FaultyMount) -> None:
    handle = os.open(mount.path / "file", os.O_RDWR)
    mount.set(short_read=0.3)
    assert os.pread(handle, 1000, 5) == DATA[5:305]
    mount.set(flip_read_bit=True)
    got = os.pread(handle, 1000, 0)
    wrong = [bin(a ^ b).count("1") for a, b in zip(got, DATA, strict=False) if a != b]
    assert len(got) == 1000 and wrong == [1]
    mount.set()
    assert os.pread(handle, 1000, 0) == DATA[:1000]
    mount.set(short_write=0.5)
    assert os.pwrite(handle, b"z" * 1000, 0) == 500
    mount.set()
    assert os.pread(handle, 501, 0) == b"z" * 500 + DATA[500:501]
    os.close(handle)


@pytest.mark.parametrize(
    ("fault", "call"),
    [("stall_lookup_s", "stat"), ("stall_read_s", "read"), ("stall_write_s", "write")],
)
def test_a_call_hangs_until_told(mount: FaultyMount, fault: str, call: str) -> None:
    if call == "write":  # opened before, as it asks for attributes
        handle = os.open(mount.path / "file", os.O_WRONLY)
        work: Callable[[], object] = lambda: os.pwrite(handle, b"x", 0)  # noqa: E731
    else:
        work = lambda: CALLS[call](mount.path)  # noqa: E731
    mount.set(match="file", **{fault: 600.0})
    hung = [threading.Thread(target=work) for _ in range(40)]  # more than a pool would have
    for each in hung:
        each.start()
    # By one inode the kernel sends writes, and looks by one name, in turn.
    until(lambda: mount.stalled() >= (40 if call == "read" else 1))
    assert all(each.is_alive() for each in hung)
    (mount.path / "other").write_bytes(DATA)  # others go on
    assert (mount.path / "other").read_bytes() == DATA
    mount.set()
    for each in hung:
        each.join(PATIENCE_SECONDS)
        assert not each.is_alive()
    assert mount.stalled() == 0
    if call == "write":
        os.close(handle)


def test_a_frozen_server_answers_nobody(
    mount: FaultyMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulty_mount, "ANSWER_SECONDS", 0.3)
    mount.freeze()
    hung = threading.Thread(target=os.statvfs, args=(mount.path,))
    hung.start()
    mount.set(read="EIO")  # in force later
    assert hung.is_alive() and mount.injected() == {}
    mount.thaw()
    hung.join(PATIENCE_SECONDS)
    assert not hung.is_alive()
    monkeypatch.undo()
    assert mount.stalled() == 0 and error_of(CALLS["read"].__get__(mount.path)) == errno.EIO


def test_latency_and_bandwidth(mount: FaultyMount) -> None:
    def seconds(work: Callable[[], object]) -> float:
        begin = time.monotonic()
        work()
        return time.monotonic() - begin

    handle = os.open(mount.path / "file", os.O_RDWR)
    mount.set(metadata_latency_ms=100)
    assert seconds(lambda: os.statvfs(mount.path)) >= 0.1
    mount.set(read_latency_ms=100)
    assert seconds(lambda: os.pread(handle, 10, 0)) >= 0.1
    mount.set(write_latency_ms=100)
    assert seconds(lambda: os.pwrite(handle, b"x", 0)) >= 0.1
    mount.set(bandwidth_mb_s=5)
    for _ in range(2):
        os.pread(handle, 1 << 20, 0)
    assert seconds(lambda: os.pread(handle, 1 << 20, 0)) >= 0.2
    os.close(handle)


def test_what_is_no_fault_is_refused(mount: FaultyMount) -> None:
    mount.set(read="EIO")
    for wrong in ({"reed": "EIO"}, {"read": "ENOTHING"}, {"probability": "often"}, {"match": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mount.set(**wrong)
    assert error_of((mount.path / "file").read_bytes) == errno.EIO


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    mount = FaultyMount(tmp_path)
    (mount.path / "file").write_bytes(DATA)
    mount.set(stall_read_s=600.0)
    hung = threading.Thread(target=lambda: error_of((mount.path / "file").read_bytes))
    hung.start()
    until(mount.stalled)
    mount.close()
    hung.join(PATIENCE_SECONDS)
    assert not hung.is_alive() and not os.path.ismount(mount.path)
    assert (mount.source / "file").read_bytes() == DATA


def test_a_server_that_was_killed(tmp_path: Path) -> None:
    mount = FaultyMount(tmp_path)
    mount._process.kill()
    mount._process.wait()
    try:
        assert error_of(lambda: os.statvfs(mount.path)) == errno.ENOTCONN
        mount.set(read="EIO")
    finally:
        mount.close()
    assert not os.path.ismount(mount.path) and mount.path.stat()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from tests.harness.faulty_mount import FaultyMount\n"
        f"mount = FaultyMount(pathlib.Path({str(tmp_path)!r})); mount.set(stall_lookup_s=600)\n"
        "os._exit(0 if os.path.ismount(mount.path) else 3)"
    )
    subprocess.run(["python", "-c", code], check=True, cwd=Path(__file__).parents[2])
    until(lambda: str(tmp_path) not in Path("/proc/self/mounts").read_text())
