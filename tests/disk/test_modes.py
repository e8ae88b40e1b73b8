"""Who may read and write: modes, groups and umasks, with real users where the tests run as root."""

from __future__ import annotations

import os
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvshelf import Chunk, Identity, Shelf, make_key
from kvshelf.disk.root import list_namespaces, open_root
from kvshelf.disk.this_process import this_owner
from kvshelf.engine import EngineConfig, FileStatus
from kvshelf.errors import ConfigError

pytestmark = pytest.mark.timeout(60)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="other users need root")

IDENTITY = Identity({"model": "org/model"})
ALICE, BOB, MALLORY, GROUP = 40001, 40002, 40003, 50000
KEYS = [make_key(bytes([i, *range(31)]), 0) for i in range(3)]
BLOCKS = np.random.default_rng(5).integers(0, 256, (8, 4096), dtype=np.uint8)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A root as an administrator makes it (docs/howto/permissions.md); pytest closes its own."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        root = Path(parent) / "shelf"
        root.mkdir()
        os.chown(root, 0, GROUP)
        root.chmod(0o2770)
        yield root


def as_user(user: int, groups: list[int], umask: int, work: Callable[[], None]) -> None:
    """Run ``work`` in a process of this user, whose own group is nobody else's."""
    this_owner()  # imports a codec, which another user may not be allowed to
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.umask(umask)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def shelf(root: Path, blocks: np.ndarray, **changes: int) -> Shelf:
    config = EngineConfig(io_threads=2, load_only_threads=1, lookup_threads=2, **changes)
    return Shelf.of_arrays(root, IDENTITY, blocks, config=config)


def store(root: Path, key: bytes, wanted: FileStatus = FileStatus.OK) -> None:
    with shelf(root, BLOCKS.copy()) as opened:
        assert opened.store([Chunk(key, range(3))]) == [wanted]


def load(root: Path, key: bytes) -> None:
    blocks = np.zeros_like(BLOCKS)
    with shelf(root, blocks) as opened:
        assert opened.lookup([key]) == [FileStatus.OK]
        assert opened.load([Chunk(key, range(3))]) == [FileStatus.OK]
    assert (blocks[:3] == BLOCKS[:3]).all()


def modes(root: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"files": set(), "folders": set()}
    for path in root.rglob("*"):
        kind = "folders" if path.is_dir() else "files"
        found[kind].add(stat.S_IMODE(path.stat().st_mode))
    return found


@pytest.mark.parametrize(
    ("umask", "files", "folders"),
    [(0o022, 0o640, 0o2750), (0o007, 0o640, 0o2770), (0o077, 0o600, 0o2700), (0, 0o640, 0o2770)],
)
def test_the_umask_cuts_the_defaults(tmp_path: Path, umask: int, files: int, folders: int) -> None:
    before = os.umask(umask)
    try:
        store(tmp_path / "shelf", KEYS[0])
    finally:
        os.umask(before)
    assert modes(tmp_path) == {"files": {files}, "folders": {folders}}


@root_only
def test_two_users_of_a_group_share_and_a_third_is_kept_out(shared: Path) -> None:
    both = [GROUP]
    as_user(ALICE, both, 0o007, lambda: store(shared, KEYS[0]))
    as_user(BOB, both, 0o007, lambda: store(shared, KEYS[1]))
    as_user(ALICE, both, 0o007, lambda: load(shared, KEYS[1]))
    as_user(BOB, both, 0o007, lambda: load(shared, KEYS[0]))
    owners = {path.stat().st_uid for path in shared.rglob("*.kv")}
    assert owners == {ALICE, BOB}
    assert {path.stat().st_gid for path in shared.rglob("*")} == {GROUP}
    assert modes(shared) == {"files": {0o640}, "folders": {0o2770}}

    def refused() -> None:
        with pytest.raises(ConfigError, match="shared_storage_path"):
            open_root(shared)
        with pytest.raises(PermissionError):
            list_namespaces(shared)
        for path in chunks:
            with pytest.raises(PermissionError):
                path.read_bytes()

    chunks = list(shared.rglob("*.kv"))
    as_user(MALLORY, [], 0o007, refused)


@root_only
def test_a_damaged_file_of_another_user_is_removed_and_stored_anew(shared: Path) -> None:
    as_user(ALICE, [GROUP], 0o007, lambda: store(shared, KEYS[0]))
    (path,) = shared.rglob("*.kv")
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")

    def mend() -> None:
        with shelf(shared, BLOCKS.copy()) as opened:
            assert opened.load([Chunk(KEYS[0], range(3, 6))]) == [FileStatus.CORRUPT]
        store(shared, KEYS[0])

    as_user(BOB, [GROUP], 0o007, mend)
    assert path.stat().st_uid == BOB
    as_user(ALICE, [GROUP], 0o007, lambda: load(shared, KEYS[0]))


@root_only
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_where_the_group_may_write_the_umask_does_not_matter(shared: Path, umask: int) -> None:
    as_user(ALICE, [GROUP], umask, lambda: store(shared, KEYS[0]))
    as_user(BOB, [GROUP], umask, lambda: load(shared, KEYS[0]))
    as_user(BOB, [GROUP], umask, lambda: store(shared, KEYS[1]))
    as_user(ALICE, [GROUP], umask, lambda: load(shared, KEYS[1]))


@root_only
def test_without_setgid_the_group_of_the_root_is_given(shared: Path) -> None:
    shared.chmod(0o770)
    as_user(ALICE, [GROUP], 0o022, lambda: store(shared, KEYS[0]))
    as_user(BOB, [GROUP], 0o022, lambda: store(shared, KEYS[1]))
    assert {path.stat().st_gid for path in shared.rglob("*")} == {GROUP}


@root_only
def test_another_group_gets_nothing_that_the_umask_denies(shared: Path) -> None:
    """A user outside the root's group may write where all may; then it is not the group's."""
    shared.chmod(0o777)
    as_user(ALICE, [], 0o077, lambda: store(shared, KEYS[0]))
    assert {path.stat().st_gid for path in shared.rglob("*")} == {ALICE}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in shared.rglob("*")} == {0}


@root_only
def test_what_the_superuser_stores_is_the_roots_owners(shared: Path) -> None:
    for mode, owner in ((0o755, ALICE), (0o2770, ALICE), (0o700, ALICE)):
        root = shared / f"{mode:o}"
        root.mkdir()
        os.chown(root, owner, GROUP)
        root.chmod(mode)
        store(root, KEYS[0])
        made = list(root.rglob("*"))
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(owner, GROUP)}
        shared.chmod(0o2775)
        as_user(owner, [GROUP], 0o022, lambda root=root: store(root, KEYS[1]))  # type: ignore[misc]


@root_only
@pytest.mark.parametrize("closed", ["", "/tmp"])
def test_a_namespace_of_another_is_said_with_its_mend(
    shared: Path, closed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As an older kvshelf made it with umask 022: all load, only its user stores."""
    as_user(ALICE, [GROUP], 0o022, lambda: store(shared, KEYS[0]))
    folder = shared / f"{IDENTITY.folder}{closed}"
    folder.chmod(0o2750)

    def said() -> None:
        with shelf(shared, BLOCKS.copy()) as opened:
            status = [FileStatus.OK if not closed else FileStatus.IO_ERROR]
            assert opened.store([Chunk(KEYS[1], range(3))]) == status
        [record] = caplog.records
        assert f"{folder} is of user {ALICE} and group {GROUP}, mode 2750" in record.message
        assert f"chown -R 0:{GROUP} {folder} && chmod 2770 {folder}" in record.message

    as_user(BOB, [GROUP], 0o022, said)
    (folder / "namespace.json").unlink(missing_ok=True)
    folder.chmod(0o2750)

    def refused() -> None:
        with pytest.raises(ConfigError, match=r"run as root: chown -R 0:50000"):
            shelf(shared, BLOCKS.copy())

    if not closed:
        (folder / "tmp").rmdir()
        as_user(BOB, [GROUP], 0o022, refused)


@root_only
def test_only_the_owner_of_a_file_renews_its_access_time(shared: Path) -> None:
    """utimensat(2): setting one of the two times alone is the owner's, whatever the mode."""

    def touched(expected: int) -> None:
        with shelf(shared, BLOCKS.copy(), touch_interval_seconds=0) as opened:
            opened.touch([KEYS[0]])
            assert opened.drain(10)
            assert opened.stats().touched == expected

    as_user(ALICE, [GROUP], 0o007, lambda: store(shared, KEYS[0]))
    as_user(ALICE, [GROUP], 0o007, lambda: touched(1))
    as_user(BOB, [GROUP], 0o007, lambda: touched(0))


@root_only
@pytest.mark.parametrize("what", ["kvshelf.json", "namespace.json"])
def test_a_file_that_may_not_be_read_is_one_clear_error(shared: Path, what: str) -> None:
    as_user(ALICE, [GROUP], 0o007, lambda: store(shared, KEYS[0]))
    (path,) = shared.rglob(what)
    path.chmod(0o600)

    def refused() -> None:
        with pytest.raises(ConfigError, match="Permission denied"):
            shelf(shared, BLOCKS.copy())

    as_user(BOB, [GROUP], 0o007, refused)
    path.chmod(0o640)


@root_only
def test_a_chunk_that_may_not_be_read_is_no_wrong_byte(shared: Path) -> None:
    as_user(ALICE, [GROUP], 0o077, lambda: store(shared, KEYS[0]))
    next(shared.rglob("*.kv")).chmod(0o600)

    def fails() -> None:
        blocks = np.zeros_like(BLOCKS)
        with shelf(shared, blocks) as opened:
            assert opened.load([Chunk(KEYS[0], range(3))]) == [FileStatus.IO_ERROR]
        assert not blocks.any()

    as_user(BOB, [GROUP], 0o007, fails)
    assert len(list(shared.rglob("*.kv"))) == 1
