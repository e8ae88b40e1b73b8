"""Opening a root and its namespaces: what may become a shelf, what is refused, and how."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvshelf.disk.layout import owner_is_dead, parse_temp_name, temp_name
from kvshelf.disk.namespace import Identity
from kvshelf.disk.root import (
    is_shelf,
    list_namespaces,
    open_namespace,
    open_root,
)
from kvshelf.disk.this_process import start_ticks_of, this_owner
from kvshelf.errors import ConfigError, NotAShelfError

IDENTITY = Identity({"model": "org/model", "dtype": "bfloat16"})
DEEP = "[" * 500_000 + "]" * 500_000


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def names(path: str | Path) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def test_an_absent_directory_is_made(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    assert json.loads((root / "kvshelf.json").read_text()) == {"kvshelf": 1}
    assert names(root) == ["kvshelf.json"]
    assert mode_of(root) == 0o2750 and mode_of(root / "kvshelf.json") == 0o640
    assert is_shelf(root)


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    marker = open_root(tmp_path) / "kvshelf.json"
    before = marker.stat()
    open_root(str(tmp_path))
    after = marker.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_permissions_are_the_settings(tmp_path: Path) -> None:
    os.umask(0)
    root = open_root(tmp_path / "shelf", dir_mode=0o3777, file_mode=0o666)
    folder = open_namespace(root, IDENTITY, dir_mode=0o2775, file_mode=0o664)
    assert [mode_of(path) for path in (root, root / "kvshelf.json")] == [0o3777, 0o666]
    assert [mode_of(path) for path in (folder, folder / "tmp")] == [0o2775, 0o2775]
    assert mode_of(folder / "namespace.json") == 0o664


def test_the_group_of_the_root_is_inherited(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    if os.geteuid() == 0:
        os.chown(root, 0, 12345)
    assert open_namespace(root, IDENTITY).stat().st_gid == root.stat().st_gid


def test_a_directory_that_is_there_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    open_root(tmp_path)
    assert mode_of(tmp_path) == 0o711


def test_a_link_to_a_directory_is_a_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert is_shelf(open_root(tmp_path / "link"))


@pytest.mark.parametrize("path", ["", ".", "shelf", "./shelf", "~/shelf", "/a\0b", "/a\ud800b"])
def test_a_path_must_be_absolute(path: str) -> None:
    with pytest.raises(ConfigError, match="absolute path") as caught:
        open_root(path)
    assert caught.value.setting == "shared_storage_path" and caught.value.value == path


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Not a directory.*must be a directory"):
        open_root(tmp_path / "file")
    with pytest.raises(ConfigError, match="Not a directory"):
        open_root(tmp_path / "file" / "shelf")


def test_the_parent_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parent directory must exist"):
        open_root(tmp_path / "mount" / "shelf")
    assert names(tmp_path) == []


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, if the tests run as root, who may write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("marked", [False, True])
def test_an_unwritable_directory_is_refused(mode: int, marked: bool) -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's are closed to other users
        Path(parent).chmod(0o755)
        root = Path(parent) / "shelf"
        root.mkdir()
        if marked:
            open_root(root, file_mode=0o644)
        root.chmod(mode)
        with unprivileged(), pytest.raises(ConfigError, match=r"Permission denied|not writable"):
            open_root(root)
        root.chmod(0o700)


@pytest.mark.parametrize("name", ["data.txt", "folder/", ".bashrc", "namespace.json", "-"])
def test_a_directory_with_other_data_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.write_text("precious")
    with pytest.raises(NotAShelfError, match=r"other data .*empty directory of its own"):
        open_root(tmp_path)
    assert names(tmp_path) == [name.rstrip("/")]


@pytest.mark.parametrize("name", ["lost+found", ".snapshot", ".trashcan", ".nfs0000000000c0ffee"])
def test_what_a_file_system_leaves_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert is_shelf(open_root(tmp_path))


def test_temp_files_of_a_crashed_process_are_no_data(tmp_path: Path) -> None:
    (tmp_path / f".{temp_name(this_owner(), 5)}").write_text('{"kvsh')
    assert is_shelf(open_root(tmp_path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "damaged"),
        ('{"kvshelf": 1', "damaged"),
        ("\xff", "damaged"),
        (DEEP, "nested too deeply"),
        (" " * (1 << 20) + "{}", "larger than 1 MiB"),
        ("[]", "says version None; this kvshelf knows 1"),
        ("null", "version None"),
        ("{}", "version None"),
        ('{"kvshelf": "1"}', "version '1'"),
        ('{"kvshelf": 2}', "says version 2; this kvshelf knows 1"),
    ],
    ids=lambda value: value[:20],
)
def test_a_marker_that_is_not_ours_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "kvshelf.json").write_text(text, encoding="latin-1")
    with pytest.raises(NotAShelfError, match=complaint):
        open_root(tmp_path)
    assert not is_shelf(tmp_path)
    assert (tmp_path / "kvshelf.json").read_text(encoding="latin-1") == text


def test_a_marker_that_is_a_link_is_refused(tmp_path: Path) -> None:
    real = open_root(tmp_path / "real") / "kvshelf.json"
    for name, target in (("good", str(real)), ("dangling", "nowhere")):
        root = tmp_path / name
        root.mkdir()
        (root / "kvshelf.json").symlink_to(target)
        with pytest.raises(NotAShelfError, match="symbolic link"):
            open_root(root)
        assert not is_shelf(root)
        assert str((root / "kvshelf.json").readlink()) == target


@pytest.mark.parametrize("make", [make_fifo, Path.mkdir], ids=["pipe", "directory"])
def test_a_marker_that_is_no_file_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "kvshelf.json")
    with pytest.raises(NotAShelfError, match="not a regular file"):
        open_root(tmp_path)
    assert not is_shelf(tmp_path)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "namespace.json").mkdir(parents=True)
    open_files = len(names("/proc/self/fd"))
    for _ in range(5):
        list_namespaces(tmp_path)
        is_shelf(tmp_path)
    assert len(names("/proc/self/fd")) == open_files


def test_a_namespace_is_made_and_found_again(tmp_path: Path) -> None:
    root = open_root(tmp_path)
    folder = open_namespace(root, IDENTITY)
    assert folder == root / IDENTITY.folder
    assert names(folder) == ["namespace.json", "tmp"]
    assert names(folder / "tmp") == []
    before = (folder / "namespace.json").stat()
    assert open_namespace(root, IDENTITY) == folder
    assert (folder / "namespace.json").stat().st_ino == before.st_ino
    [entry] = list_namespaces(root)
    assert entry.folder == IDENTITY.folder and entry.problem == ""
    assert entry.identity is not None and entry.identity.digest == IDENTITY.digest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", DEEP, '{"kvshelf":1,"identity":{"model":1}}']
)
def test_a_damaged_namespace_file_is_refused(tmp_path: Path, text: str) -> None:
    root = open_root(tmp_path)
    path = open_namespace(root, IDENTITY) / "namespace.json"
    path.write_text(text)
    with pytest.raises(NotAShelfError, match="is damaged"):
        open_namespace(root, IDENTITY)
    [entry] = list_namespaces(root)
    assert entry.identity is None and entry.problem
    assert path.read_text() == text


def test_a_folder_of_another_identity_is_refused(tmp_path: Path) -> None:
    root = open_root(tmp_path)
    other = Identity({"model": "other"})
    path = open_namespace(root, IDENTITY) / "namespace.json"
    path.write_text(json.dumps(other.to_json()))
    with pytest.raises(NotAShelfError, match=f"another namespace.*{other.digest12}"):
        open_namespace(root, IDENTITY)
    [entry] = list_namespaces(root)
    assert entry.identity is not None and other.folder in entry.problem


def test_a_namespace_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    path = open_namespace(root, IDENTITY) / "namespace.json"
    path.rename(tmp_path / "moved.json")
    for target in (tmp_path / "moved.json", tmp_path / "nowhere"):
        path.symlink_to(target)
        with pytest.raises(NotAShelfError, match="symbolic link"):
            open_namespace(root, IDENTITY)
        assert list_namespaces(root)[0].problem == "a symbolic link"
        path.unlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("inner", ["", "tmp"])
def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, inner: str) -> None:
    root, elsewhere = open_root(tmp_path / "shelf"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = root / IDENTITY.folder / inner
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(NotAShelfError, match="a link"):
        open_namespace(root, IDENTITY)
    assert names(elsewhere) == []


def test_only_folders_with_a_namespace_file_are_listed(tmp_path: Path) -> None:
    root = open_root(tmp_path / "shelf")
    (root / "lost+found").mkdir()
    (root / "file").write_text("")
    outside = open_namespace(open_root(tmp_path / "other"), IDENTITY)
    (root / "link").symlink_to(outside)
    assert list_namespaces(root) == []
    with pytest.raises(FileNotFoundError):
        list_namespaces(tmp_path / "absent")


def test_file_systems_without_links_get_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    root = open_root(tmp_path)
    open_namespace(root, IDENTITY)
    assert [entry.problem for entry in list_namespaces(root)] == [""]
    assert names(root) == ["kvshelf.json", IDENTITY.folder]


def _open_at_once(root: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        open_namespace(open_root(root), IDENTITY)
        results.put("")
    except Exception as error:
        results.put(repr(error))


def test_sixteen_processes_may_open_an_empty_root_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        barrier, results = context.Barrier(16), context.Queue()
        root = str(tmp_path / f"shelf{attempt}")
        workers = [
            context.Process(target=_open_at_once, args=(root, barrier, results)) for _ in range(16)
        ]
        for worker in workers:
            worker.start()
        outcomes = [results.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join(60)
        assert outcomes == [""] * 16
        assert names(root) == ["kvshelf.json", IDENTITY.folder]


def test_a_marker_that_appears_during_the_look_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the race of the test above does in the worst moment."""
    listed = os.listdir

    def listdir(path: Any) -> list[str]:
        monkeypatch.setattr(os, "listdir", listed)
        open_namespace(open_root(path), IDENTITY)
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert is_shelf(open_root(tmp_path))


def test_what_another_process_published_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing it would give readers on other nodes ENOENT or ESTALE, even if it were equal."""
    link, theirs = os.link, []

    def late_link(source: Any, target: Any, **kwargs: Any) -> None:
        if not os.path.lexists(target):
            Path(target).write_bytes(Path(source).read_bytes())
            theirs.append((Path(target), os.lstat(target).st_ino))
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", late_link)
    folder = open_namespace(open_root(tmp_path), IDENTITY)
    assert [path for path, _ in theirs] == [tmp_path / "kvshelf.json", folder / "namespace.json"]
    assert all(path.lstat().st_ino == inode for path, inode in theirs)
    assert names(folder / "tmp") == [] and is_shelf(tmp_path)


def test_this_process_is_alive_and_its_name_can_be_read() -> None:
    owner = this_owner()
    assert parse_temp_name(temp_name(owner, 1)) == owner
    assert owner.pid == os.getpid() and owner.start_ticks > 0
    assert owner_is_dead(owner, here=owner, start_ticks_of=start_ticks_of) is False
    assert start_ticks_of(2**22 + 1) is None


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)"
)
def test_a_writer_in_another_container_is_not_called_dead() -> None:
    """One host name, one kernel, processes that do not see each other."""
    code = "from kvshelf.disk.this_process import this_owner;"
    code += "from kvshelf.disk.layout import temp_name;"
    code += "print(temp_name(this_owner(), 1))"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no PID namespace to be had: {done.stderr.strip()[-100:]}")
    owner, here = parse_temp_name(done.stdout.strip()), this_owner()
    assert owner is not None and (owner.host, owner.boot) == (here.host, here.boot)
    assert owner.pids != here.pids
    assert owner_is_dead(owner, here=here, start_ticks_of=start_ticks_of) is None
