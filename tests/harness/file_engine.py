"""Promises of engines that keep files: every kind of damage is a miss, and heals."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from pathlib import Path

import pytest

from kvshelf.disk.keys import make_mask, masked_all
from kvshelf.disk.layout import chunk_path_in
from kvshelf.disk.usetime import last_use, marked
from kvshelf.engine import Direct, Durability, FileStatus, Phase
from kvshelf.testing.memory import NAMESPACE, Setup
from tests.harness.codec import HEADER_BYTES, bad_pieces, decode, file_bytes, geometry_digest
from tests.harness.packed import PackedTests

OK, NOT_FOUND = FileStatus.OK, FileStatus.NOT_FOUND
FOREIGN, CORRUPT = FileStatus.FOREIGN, FileStatus.CORRUPT

# In each field of the header page, and in what is reserved or unused there.
HEADER_OFFSETS = [0, 8, 12, 16, 24, 32, 36, 40, 48, 52, 56, 64, 95, 96, 98, 100, 104, 139, 140, 232]
HEADER_OFFSETS += [511, 512, 551, 552, 4095]
# ``stored`` makes five pieces: 39,864 bytes of payload, 1,096 of padding.
PAYLOAD_OFFSETS = [4096, 12287, 12288, 30000, 43959]
PADDING_OFFSETS = [43960, 45055]


def flip(path: Path, offset: int) -> None:
    """Flip one bit; access and modification times change as they will."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


class FileEngineTests(PackedTests):
    """Adds what can only be seen in files. The root is ``setup.root``."""

    @pytest.mark.parametrize("first", [0, 7])
    def test_a_file_is_what_the_format_says(self, setup: Setup, first: int) -> None:
        blocks = setup.memory[0]
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], first))) == [OK]
        data = (setup.root / setup.path(1)).read_bytes()
        header = decode(data)
        payload = b"".join(blocks.blocks([1, 2, 3]))
        assert data[HEADER_BYTES:].rstrip(b"\0") == payload.rstrip(b"\0")
        assert data[HEADER_BYTES:][: len(payload)] == payload
        assert len(data) == file_bytes(len(payload))
        assert (header.namespace, header.key, header.rank) == (NAMESPACE, setup.key(1), 0)
        assert header.geometry == geometry_digest(blocks.page_bytes)
        assert (header.first_block, header.block_count) == (first, 3)
        assert header.piece_bytes <= self.config.piece_bytes
        assert bad_pieces(header, payload) == []

    @pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 8191, 8192, 20_000, 40_960, 45_055])
    def test_a_truncated_file(self, setup: Setup, size: int) -> None:
        path = self.stored(setup)
        os.truncate(path, size)
        self.check_refused_and_healed(setup, path, CORRUPT)

    @pytest.mark.parametrize("extra", [1, 4096])
    def test_a_file_that_is_too_long(self, setup: Setup, extra: int) -> None:
        path = self.stored(setup)
        os.truncate(path, path.stat().st_size + extra)
        self.check_refused_and_healed(setup, path, CORRUPT)

    @pytest.mark.parametrize("offset", [*HEADER_OFFSETS, *PAYLOAD_OFFSETS])
    def test_a_flipped_bit(self, setup: Setup, offset: int) -> None:
        path = self.stored(setup)
        flip(path, offset)
        self.check_refused_and_healed(setup, path, CORRUPT)

    @pytest.mark.parametrize("offset", PADDING_OFFSETS)
    def test_a_flipped_bit_of_the_padding_does_not_matter(self, setup: Setup, offset: int) -> None:
        path = self.stored(setup)
        assert path.stat().st_size == PADDING_OFFSETS[-1] + 1
        flip(path, offset)
        wanted = setup.memory[0].blocks([1, 2, 3])
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0))) == [OK]
        assert setup.memory[0].blocks([20, 21, 22]) == wanted

    @pytest.mark.parametrize("what", ["header", "first page", "hole", "everything"])
    def test_zeros_where_bytes_were(self, setup: Setup, what: str) -> None:
        """As a file system may show them that lost its power or a server."""
        path = self.stored(setup)
        begin = {"header": 0, "first page": 4096, "hole": 20_480, "everything": 0}[what]
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(bytes(45_056 if what == "everything" else 4096))
        self.check_refused_and_healed(setup, path, CORRUPT)

    def test_pieces_that_changed_places(self, setup: Setup) -> None:
        path = self.stored(setup)
        data = path.read_bytes()
        path.write_bytes(data[:4096] + data[12_288:20_480] + data[4096:12_288] + data[20_480:])
        self.check_refused_and_healed(setup, path, CORRUPT)

    def test_swapped_files(self, setup: Setup) -> None:
        one, two = self.stored(setup, 1), self.stored(setup, 2)
        aside = one.with_suffix(".aside")
        one.rename(aside)
        two.rename(one)
        aside.rename(two)
        self.check_refused_and_healed(setup, one, FOREIGN, 1)
        self.check_refused_and_healed(setup, two, FOREIGN, 2)

    @pytest.mark.parametrize(
        "what", ["directory", "large directory", "fifo", "link to a file", "link to itself"]
    )
    def test_something_else_under_the_name(self, setup: Setup, what: str) -> None:
        path = self.stored(setup)
        moved = path.with_suffix(".moved")
        path.rename(moved)
        if what.endswith("directory"):
            path.mkdir()
            for i in range(100 if what == "large directory" else 0):  # its size is a chunk file's
                (path / f"{i:0200}").touch()
        elif what == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(moved.name if what == "link to a file" else path.name)
        others = [i for i in range(32) if i not in (20, 21, 22)]
        before = setup.memory[0].blocks(others)
        (status,) = setup.statuses("load", setup.batch((1, [20, 21, 22], 0)))
        assert status in (CORRUPT, NOT_FOUND, FileStatus.IO_ERROR)
        assert setup.memory[0].blocks(others) == before
        assert setup.statuses("lookup", [setup.path(1)]) == [NOT_FOUND]
        content = moved.read_bytes()
        setup.engine.touch([setup.path(1)])
        setup.statuses("store", setup.batch((1, [4, 5, 6], 0)))  # must end and follow no link
        assert setup.engine.drain(10)
        assert moved.read_bytes() == content
        assert list((setup.root / "ns" / "tmp").iterdir()) == []

    @pytest.mark.parametrize("absolute", [True, False])
    def test_a_folder_that_is_a_link_is_not_followed(self, setup: Setup, absolute: bool) -> None:
        path = self.stored(setup)
        outside = path.parent.with_name("outside")
        path.parent.rename(outside)
        path.parent.symlink_to(outside if absolute else outside.name)
        (status,) = setup.statuses("load", setup.batch((1, [20, 21, 22], 0)))
        assert status is not OK
        (status,) = setup.statuses("store", setup.batch((9, [1], 0)))
        assert status is not OK
        assert setup.statuses("lookup", [setup.path(1)]) == [NOT_FOUND]
        os.utime(outside / path.name, (1000, 2000))
        setup.engine.touch([setup.path(1)])
        assert setup.engine.drain(10)
        setup.engine.submit_probe(100, [setup.path(1)], 1 << 20)
        assert setup.engine.wait([100], Phase.FINISHED, 10)
        (report,) = setup.engine.poll()
        assert report.statuses == (NOT_FOUND,) and report.payload_bytes == 0
        assert (outside / path.name).stat().st_atime == 1000
        assert [p.name for p in outside.iterdir()] == [path.name]

    @pytest.mark.parametrize(("offset", "lost"), [(4096, 0), (43_000, 2)])
    def test_damage_in_a_piece_that_is_not_wanted_does_not_matter(
        self, setup: Setup, offset: int, lost: int
    ) -> None:
        path = self.stored(setup)
        flip(path, offset)
        for block in {0, 2} - {lost}:
            wanted = setup.memory[0].block(1 + block)
            setup.memory[0].clear([20])
            assert setup.statuses("load", setup.batch((1, [20], block))) == [OK]
            assert setup.memory[0].block(20) == wanted
        assert setup.statuses("load", setup.batch((1, [20], lost))) == [CORRUPT]

    @pytest.mark.parametrize("offset", [100, 5000])
    def test_bad_files_stay_where_they_may_not_be_removed(self, setup: Setup, offset: int) -> None:
        path = self.stored(setup)
        flip(path, offset)
        damaged = path.read_bytes()
        keeping = setup.open(config=dataclasses.replace(self.config, remove_bad=False))
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), keeping) == [CORRUPT]
        stored = OK if offset >= HEADER_BYTES else CORRUPT  # a store reads the header alone
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], 0)), keeping) == [stored]
        assert keeping.stats().removed_bad == 0
        assert keeping.close()
        assert path.read_bytes() == damaged

    def test_without_verification_the_header_is_still_checked(self, setup: Setup) -> None:
        config = dataclasses.replace(self.config, verify=False)
        path = self.stored(setup)
        flip(path, 48)
        trusting = setup.open(config=config)
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), trusting) == [CORRUPT]
        self.stored(setup)
        wanted = setup.memory[0].blocks([2, 3])
        assert setup.statuses("load", setup.batch((1, [20, 21], 1)), trusting) == [OK]
        assert setup.memory[0].blocks([20, 21]) == wanted
        assert trusting.close()

    def test_files_that_are_removed_under_the_engine_are_misses(self, setup: Setup) -> None:
        """As an evictor removes them: folders too, at any time."""
        blocks = setup.memory[0]
        wanted = blocks.blocks(range(8))
        rows = [(i, [i], 0) for i in range(8)]
        for turn in range(10):
            assert set(setup.statuses("store", setup.batch(*rows))) == {OK}
            batch = setup.batch(*((i, [8 + i], 0) for i in range(8)))
            blocks.clear(range(8, 16))
            setup.engine.submit_load(1000 + turn, batch)
            for path in batch.paths[:-1]:
                (setup.root / path).unlink()
            assert setup.engine.wait([1000 + turn], Phase.FINISHED, 20)
            (report,) = setup.engine.poll()
            assert set(report.statuses) <= {OK, NOT_FOUND}
            assert report.statuses[-1] is OK
            for i, status in enumerate(report.statuses):
                assert status is NOT_FOUND or blocks.block(8 + i) == wanted[i]
            (setup.root / batch.paths[-1]).unlink()
            (setup.root / batch.paths[-1]).parent.rmdir()

    def test_a_chunk_that_somebody_publishes_meanwhile_stays(self, setup: Setup) -> None:
        """Its readers may have it open: a store that comes second drops its own file."""
        temp = setup.root / "ns" / "tmp"
        planted = 0
        for index in range(25):
            path = setup.root / setup.path(index)
            assert setup.statuses("store", setup.batch((index, [2] * 250, 0))) == [OK]
            theirs = path.rename(path.with_suffix(".theirs"))
            job = 1000 + index
            setup.engine.submit_store(job, setup.batch((index, [1] * 250, 0)))  # takes a while
            while not any(temp.iterdir()) and not setup.engine.wait([job], Phase.FINISHED, 0):
                pass
            with contextlib.suppress(FileExistsError):
                os.link(theirs, path)
                planted += 1
            first = path.stat().st_ino
            assert setup.engine.wait([job], Phase.FINISHED, 20)
            assert setup.engine.poll()[-1].statuses == (OK,)
            assert path.stat().st_ino == first
            assert list(temp.iterdir()) == []
        assert planted > 0

    def test_no_temp_file_is_left(self, setup: Setup) -> None:
        self.stored(setup)
        setup.statuses("store", setup.batch((1, [1, 2, 3], 0)))
        setup.engine.submit_store(100, setup.batch(*((i, [i], 0) for i in range(2, 20))))
        assert setup.engine.close()
        assert list((setup.root / "ns" / "tmp").iterdir()) == []
        assert {p.name for p in setup.root.iterdir()} == {"ns"}

    def test_modes_of_what_is_made(self, setup: Setup) -> None:
        config = dataclasses.replace(self.config, file_mode=0o600, dir_mode=0o700)
        other = setup.open(config=config)
        assert setup.statuses("store", setup.batch((1, [1], 0)), other) == [OK]
        assert other.close()
        path = setup.root / setup.path(1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for folder in (*list(path.relative_to(setup.root).parents)[:-1], Path("ns/tmp")):
            assert stat.S_IMODE((setup.root / folder).stat().st_mode) == 0o700

    def test_touch_renews_old_uses_and_those_of_the_future_only(self, setup: Setup) -> None:
        """The times of 1 to 3 are as an older kvshelf left them, those of 4 to 6 as touches do."""
        old = self.config.touch_interval_seconds + 60
        ages = {1: 10_000.0, 2: 10.0, 3: old, 4: -1000.0, 5: 10.0, 6: old}
        now = time.time()
        for index, age in ages.items():
            used = marked(int(1e9 * (now - age)), reused=False)
            stored = int(1e9 * (now - 20_000)) if index < 4 else used
            os.utime(self.stored(setup, index), ns=(used, stored))
        setup.engine.touch([setup.path(index) for index in (*ages, 7)])
        assert setup.engine.drain(10)
        for index, age in ages.items():
            use = last_use((setup.root / setup.path(index)).stat())
            if index in (2, 5):
                assert abs(1e-9 * use.ns - (now - age)) < 1
            else:
                assert now - 5 < 1e-9 * use.ns < now + 60 and use.reused == (index != 4)
        assert setup.engine.stats().touched == 4
        assert setup.engine.poll() == []

    def test_touch_of_keys_gives_each_its_time(self, setup: Setup) -> None:
        keys = [bytes([i]) * 36 for i in range(3)]
        paths = [setup.root / chunk_path_in("ns/r0", key) for key in keys]
        for index, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stored(setup, index).rename(path)
        now_ns = time.time_ns()
        old_ns = now_ns - 10**9 * int(self.config.touch_interval_seconds + 60)
        for path, age in zip(paths, (now_ns, old_ns, now_ns), strict=True):
            os.utime(path, ns=(age, 12_345))  # a chunk that was used again
        wanted = [now_ns - i * 10**6 for i in range(3)]
        written = [marked(each, reused=True) for each in wanted]
        folders = ["ns/r0", "ns/r1"]  # of the second there is none
        setup.engine.touch_keys(folders, keys, wanted)
        assert setup.engine.drain(10)
        assert [path.stat().st_atime_ns for path in paths] == [now_ns, written[1], now_ns]
        setup.engine.touch_keys(folders, keys, wanted, always=True)
        assert setup.engine.drain(10)
        assert [path.stat().st_atime_ns for path in paths] == written
        assert [path.stat().st_mtime_ns for path in paths] == written
        assert setup.engine.stats().touched == 4
        mask = make_mask("an epoch")
        later = [time_ns + 10**7 for time_ns in wanted]
        setup.engine.touch_keys(folders, keys, later, always=True, mask=mask)
        assert setup.engine.drain(10)
        assert [path.stat().st_mtime_ns for path in paths] == written  # other chunks
        asked = masked_all(keys, mask)
        setup.engine.touch_keys(folders, asked, later, always=True, mask=mask)
        assert setup.engine.drain(10)
        assert [path.stat().st_mtime_ns for path in paths] == [
            marked(each, reused=True) for each in later
        ]

    def test_touches_are_written_by_the_file_systems_clock(self, setup: Setup) -> None:
        path = self.stored(setup, 1)
        old = time.time() - 10_000
        os.utime(path, (old, old))
        behind_ns = 5000 * 10**9
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        setup.engine.set_clock(time.time_ns() - behind_ns - boot_ns)
        setup.engine.touch([setup.path(1)])
        assert setup.engine.drain(10)
        assert abs(time.time() - 5000 - path.stat().st_mtime) < 60

    def test_a_load_leaves_the_access_time_alone(self, setup: Setup) -> None:
        """Touches keep chunks in their order; a mount may set times when it reads."""
        path = self.stored(setup)
        before = (1_000_000_000, 2_000_000_000)  # relatime renews it if it is the older one
        os.utime(path, ns=before)
        assert setup.statuses("load", setup.batch((1, [1, 2, 3], 0))) == [OK]
        assert path.stat().st_atime_ns == before[0]

    def test_other_calls_leave_the_modification_time_alone(self, setup: Setup) -> None:
        path = self.stored(setup)
        os.utime(path, (1000, 2000))
        setup.statuses("load", setup.batch((1, [20, 21, 22], 0)))
        setup.statuses("lookup", [setup.path(1)])
        setup.statuses("store", setup.batch((1, [4, 5, 6], 0)))
        assert path.stat().st_mtime == 2000

    @pytest.mark.parametrize("durability", list(Durability))
    def test_every_durability_stores(self, setup: Setup, durability: Durability) -> None:
        wanted = setup.memory[0].blocks([1, 2])
        other = setup.open(config=dataclasses.replace(self.config, durability=durability))
        assert setup.statuses("store", setup.batch((1, [1, 2], 0)), other) == [OK]
        assert other.close()
        assert setup.statuses("load", setup.batch((1, [20, 21], 0))) == [OK]
        assert setup.memory[0].blocks([20, 21]) == wanted

    @pytest.mark.parametrize("direct", [Direct.AUTO, Direct.ON])
    def test_direct_io_moves_the_same_bytes(self, setup: Setup, direct: Direct) -> None:
        config = dataclasses.replace(self.config, direct=direct)
        try:
            other = setup.open(config=config)
        except OSError as error:
            pytest.skip(f"O_DIRECT does not work here: {error}")
        assert other.stats().direct or direct is Direct.AUTO
        wanted = setup.memory[0].blocks([1, 2, 3])
        self.stored(setup, 2)
        batch = setup.batch((1, [1, 2, 3], 0))
        assert setup.statuses("store", batch, other) == [OK]
        one, two = ((setup.root / setup.path(i)).read_bytes() for i in (1, 2))
        assert one[HEADER_BYTES:] == two[HEADER_BYTES:]
        for engine in (other, setup.engine):
            for first in (0, 1, 2):
                ids = [20, 21, 22][first:]
                for index in (1, 2):
                    setup.memory[0].clear(ids)
                    rows = setup.batch((index, ids, first))
                    assert setup.statuses("load", rows, engine) == [OK]
                    assert setup.memory[0].blocks(ids) == wanted[first:]
        for offset in (100, 30_000):
            flip(setup.root / setup.path(1), offset)
            assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0)), other) == [CORRUPT]
            assert setup.statuses("store", batch, other) == [OK]
        assert other.close()

    def check_refused_and_healed(
        self, setup: Setup, path: Path, status: FileStatus, index: int = 1
    ) -> None:
        """The file is refused and removed, other memory untouched; a new one is good."""
        blocks = setup.memory[0]
        others = [i for i in range(32) if i not in (20, 21, 22)]
        wanted, before = blocks.blocks([1, 2, 3]), blocks.blocks(others)
        removed = setup.engine.stats().removed_bad
        assert setup.statuses("load", setup.batch((index, [20, 21, 22], 0))) == [status]
        assert blocks.blocks(others) == before
        assert not path.exists()
        assert setup.engine.stats().removed_bad == removed + 1
        assert setup.statuses("lookup", [setup.path(index)]) == [NOT_FOUND]
        assert setup.statuses("store", setup.batch((index, [1, 2, 3], 0))) == [OK]
        blocks.clear([20, 21, 22])
        assert setup.statuses("load", setup.batch((index, [20, 21, 22], 0))) == [OK]
        assert blocks.blocks([20, 21, 22]) == wanted
