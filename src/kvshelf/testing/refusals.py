"""The conformance suite on what an engine refuses: arguments, job ids, chunks of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvshelf.engine import Engine, EngineConfig, FileStatus, GroupMemory, Pages, Phase
from kvshelf.errors import EngineClosedError
from kvshelf.testing.memory import Blocks, Setup

OK, NOT_FOUND, FOREIGN = FileStatus.OK, FileStatus.NOT_FOUND, FileStatus.FOREIGN

BAD_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "ns/../../x",
    "ns/./x",
    "ns//x",
    "ns/x/",
    "ns/a\0b",
    "ns/" + "x" * 256,
    "ns/" + "x/" * 2100 + "x",
]


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


# Changes of a good batch of two rows of two blocks each, in block memory of 32.
BAD_COLUMNS: list[dict[str, Any]] = [
    *({"paths": ["ns/good", path]} for path in BAD_PATHS),
    {"paths": []},
    {"paths": [], "keys": [], **dict.fromkeys(("groups", "first_blocks", "block_counts"), ints())},
    {"paths": ["ns/a", "ns/b", "ns/c"]},
    {"keys": [b"good key" * 4]},
    {"keys": [b"good key" * 4, b"k" * 11]},
    {"keys": [b"good key" * 4, b"k" * 129]},
    {"groups": ints(0, 2)},
    {"groups": ints(0, -1)},
    {"groups": ints(0)},
    {"groups": np.zeros(2, dtype=np.int64)},
    {"groups": np.zeros((2, 1), dtype=np.int32)},
    {"first_blocks": ints(0, -1)},
    {"block_counts": ints(2, 0)},
    {"block_counts": ints(4, 0)},
    {"block_counts": ints(2, 3)},
    {"block_counts": ints(2, 1)},
    {"block_counts": ints(5, -1)},
    {"block_counts": ints(2**31 - 1, 2**31 - 1)},
    {"block_ids": ints(1, 2, 3, 32)},
    {"block_ids": ints(1, 2, 3, -1)},
    {"block_ids": ints(1, 2, 3, 2**31 - 1)},
    {"block_ids": ints()},
]


def label(change: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.30}" for name, value in list(change.items())[:1])


class RefusalTests:
    """Part of ``EngineTests``, which says how to use it; owns its fixtures."""

    config = EngineConfig(
        io_threads=2,
        load_only_threads=1,
        lookup_threads=2,
        piece_bytes=8192,
        step_bytes=4096,
        write_buffer_bytes=1 << 20,
    )

    @pytest.fixture
    def engine_factory(self) -> Callable[..., Engine]:
        raise NotImplementedError("give the engine's class or a function that makes one")

    @pytest.fixture
    def setup(self, engine_factory: Callable[..., Engine], tmp_path: Path) -> Iterator[Setup]:
        """An engine over two groups; whatever a test does, no byte beside the pages changes."""
        memory = [Blocks((4096, 1000, 8192), 32), Blocks((513,), 16, seed=2, gap_bytes=0)]
        made = Setup(engine_factory, tmp_path, memory, self.config)
        yield made
        assert made.engine.close()
        assert all(blocks.guards_are_whole() for blocks in memory)

    @pytest.mark.parametrize("change", BAD_COLUMNS, ids=label)
    @pytest.mark.parametrize("kind", ["store", "load"])
    def test_bad_arguments_queue_nothing(
        self, setup: Setup, kind: str, change: dict[str, Any]
    ) -> None:
        batch = dataclasses.replace(setup.batch((1, [1, 2], 0), (2, [3, 4], 0)), **change)
        with pytest.raises(ValueError, match=r"."):
            getattr(setup.engine, f"submit_{kind}")(1, batch)
        assert setup.engine.drain(5)
        assert setup.engine.poll() == []
        assert setup.statuses("lookup", [setup.path(1), "ns/good"]) == [NOT_FOUND, NOT_FOUND]

    @pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: f"{path!r:.20}")
    def test_bad_paths_are_not_looked_up_or_touched(self, setup: Setup, path: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            setup.engine.submit_lookup(1, ["ns/good", path])
        with pytest.raises(ValueError, match=r"."):
            setup.engine.touch(["ns/good", path])
        assert setup.engine.drain(5)
        assert setup.engine.poll() == []

    @pytest.mark.parametrize(
        ("folders", "keys", "times"),
        [
            (["../ns"], [b"k" * 36], [1]),
            (["ns"], [b"k" * 11], [1]),
            (["ns"], [b"k" * 129], [1]),
            (["ns"], [b"k" * 36], []),
            (["ns"], [b"k" * 36], [0]),
            (["ns"], [b"k" * 36], [-1]),
        ],
    )
    def test_bad_touches_of_keys_are_refused(
        self, setup: Setup, folders: list[str], keys: list[bytes], times: list[int]
    ) -> None:
        with pytest.raises(ValueError, match=r"."):
            setup.engine.touch_keys(folders, keys, times)

    def test_a_lookup_of_nothing_is_refused(self, setup: Setup) -> None:
        with pytest.raises(ValueError, match=r"."):
            setup.engine.submit_lookup(1, [])

    def test_a_store_needs_a_namespace_folder(self, setup: Setup) -> None:
        batch = dataclasses.replace(setup.batch((1, [1], 0)), paths=["file"])
        with pytest.raises(ValueError, match="folder"):
            setup.engine.submit_store(1, batch)
        assert setup.statuses("load", batch) == [NOT_FOUND]

    def test_a_chunk_of_too_many_pieces_is_refused(self, setup: Setup) -> None:
        room = 448 * self.config.piece_bytes // len(setup.memory[0].block(0))
        with pytest.raises(ValueError, match="448"):
            setup.engine.submit_store(1, setup.batch((1, [1] * (room + 1), 0)))
        assert setup.statuses("store", setup.batch((1, [1] * room, 0))) == [OK]
        assert setup.statuses("load", setup.batch((1, [20, 21], room - 2))) == [OK]
        assert setup.memory[0].blocks([20, 21]) == setup.memory[0].blocks([1, 1])

    @pytest.mark.parametrize(
        "group",
        [
            GroupMemory((), 4),
            GroupMemory((Pages(4096, 0, 0),), 4),
            GroupMemory((Pages(4096, 99, 100),), 4),
        ],
        ids=["no layers", "no bytes", "overlapping pages"],
    )
    def test_impossible_groups_are_refused(self, setup: Setup, group: GroupMemory) -> None:
        with pytest.raises(ValueError, match=r"."):
            setup.open(groups=[group])

    def test_a_namespace_has_32_bytes(self, setup: Setup) -> None:
        with pytest.raises(ValueError, match="32"):
            setup.open(namespace=bytes(31))

    def test_a_job_id_in_use_is_refused(self, setup: Setup) -> None:
        batch = setup.batch((1, [1], 0))
        setup.engine.submit_store(5, batch)
        for _ in range(2):  # first perhaps unfinished, then finished and not polled
            with pytest.raises(ValueError, match="5"):
                setup.engine.submit_lookup(5, [setup.path(1)])
            with pytest.raises(ValueError, match="5"):
                setup.engine.submit_load(5, batch)
            assert setup.engine.wait([5], Phase.FINISHED, 10)
        assert [r.phase for r in setup.engine.poll()] == [Phase.RELEASED, Phase.FINISHED]
        setup.engine.submit_load(5, batch)
        assert setup.engine.wait([5], Phase.FINISHED, 10)
        assert [r.statuses for r in setup.engine.poll()] == [(OK,)]

    def test_a_closed_engine_says_so(self, setup: Setup) -> None:
        assert setup.engine.close()
        assert setup.engine.close()
        batch = setup.batch((1, [1], 0))
        with pytest.raises(EngineClosedError):
            setup.engine.submit_store(1, batch)
        with pytest.raises(EngineClosedError):
            setup.engine.submit_load(1, batch)
        with pytest.raises(EngineClosedError):
            setup.engine.submit_lookup(1, [setup.path(1)])
        with pytest.raises(EngineClosedError):
            setup.engine.touch([setup.path(1)])
        with pytest.raises(EngineClosedError):
            setup.engine.touch_keys(["ns"], [b"k" * 36], [1])
        assert setup.engine.poll() == []
        assert setup.engine.wait([1], Phase.FINISHED, 0)
        assert setup.engine.drain(0)
        setup.engine.release([1])
        setup.engine.cancel([1])

    @pytest.mark.parametrize("remove_bad", [True, False])
    @pytest.mark.parametrize(
        "what", ["namespace", "rank", "key", "key's end", "page sizes", "number of layers"]
    )
    def test_anothers_chunk_is_refused(self, setup: Setup, what: str, remove_bad: bool) -> None:
        assert setup.statuses("store", setup.batch((1, [1, 2, 3], 0))) == [OK]
        batch = setup.batch((1, [20, 21, 22], 0))
        blocks = Blocks((4096, 1000, 8192), 32, seed=7)
        changes: dict[str, Any] = {}
        if what == "namespace":
            changes["namespace"] = bytes(32)
        elif what == "rank":
            changes["rank"] = 1
        elif what == "key":
            batch.keys[0] = setup.key(2)  # type: ignore[index]
        elif what == "key's end":
            batch.keys[0] += b"\0"  # type: ignore[index]
        else:  # as many bytes a block, cut otherwise
            sizes = (1000, 4096, 8192) if what == "page sizes" else (4096, 9192)
            blocks = Blocks(sizes, 32, seed=7)
        config = dataclasses.replace(self.config, remove_bad=remove_bad)
        other = setup.open(groups=[blocks.describe()], config=config, **changes)
        others = [i for i in range(32) if i not in (20, 21, 22)]
        before = blocks.blocks(others)
        assert setup.statuses("load", batch, other) == [FOREIGN]
        assert blocks.blocks(others) == before
        assert blocks.guards_are_whole()
        assert other.stats().removed_bad == int(remove_bad)
        assert other.close()
        kept = NOT_FOUND if remove_bad else OK
        assert setup.statuses("load", setup.batch((1, [20, 21, 22], 0))) == [kept]
