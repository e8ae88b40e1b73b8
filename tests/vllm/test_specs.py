"""Which block ids belong to which key: whole, partial, unaligned, sparse, several groups."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.v1.kv_offload.base import GPULoadStoreSpec  # noqa: E402

from kvshelf.disk.keys import make_key  # noqa: E402
from kvshelf.vllm.specs import ChunkPlan, plan_chunks  # noqa: E402


def key(i: int, group: int = 0) -> bytes:
    return make_key(i.to_bytes(32, "big"), group)


def plan(
    keys: list[bytes],
    ids: list[int],
    sizes: list[int],
    indices: list[int],
    *,
    bpc: int = 4,
    store: bool = False,
    groups: tuple[int, ...] | None = None,
) -> ChunkPlan:
    spec = GPULoadStoreSpec(ids, group_sizes=sizes, block_indices=indices)
    return plan_chunks(
        keys,
        spec,
        group_ids=groups or tuple(range(len(sizes))),
        blocks_per_chunk=bpc,
        is_store=store,
    )


def rows(result: ChunkPlan) -> list[tuple[bytes, list[int], int]]:
    return [(c.key, list(c.block_ids), c.first_block) for c in result.chunks]


def test_whole_chunks() -> None:
    result = plan([key(0), key(1)], [9, 8, 7, 6, 5, 4, 3, 2], [8], [0])
    assert rows(result) == [(key(0), [9, 8, 7, 6], 0), (key(1), [5, 4, 3, 2], 0)]
    assert not result.unmapped


def test_load_that_begins_inside_a_chunk() -> None:
    result = plan([key(1), key(2)], [10, 11, 12, 13, 14], [5], [7])
    assert rows(result) == [(key(1), [10], 3), (key(2), [11, 12, 13, 14], 0)]


def test_load_that_ends_inside_a_chunk() -> None:
    result = plan([key(0), key(1)], [1, 2, 3, 4, 5], [5], [0])
    assert rows(result) == [(key(0), [1, 2, 3, 4], 0), (key(1), [5], 0)]


def test_load_inside_one_chunk() -> None:
    result = plan([key(3)], [5, 6], [2], [13])
    assert rows(result) == [(key(3), [5, 6], 1)]


def test_store_of_chunks_that_do_not_follow_each_other() -> None:
    result = plan([key(0), key(5)], [1, 2, 3, 4, 21, 22, 23, 24], [8], [0], store=True)
    assert rows(result) == [(key(0), [1, 2, 3, 4], 0), (key(5), [21, 22, 23, 24], 0)]


def test_store_whose_first_chunk_lacks_its_beginning() -> None:
    result = plan([key(1), key(2)], [1, 2, 3, 4, 5, 6], [6], [6], store=True)
    assert rows(result) == [(key(1), [1, 2], 2), (key(2), [3, 4, 5, 6], 0)]


@pytest.mark.parametrize(
    ("ids", "indices", "store"),
    [
        ([1, 2, 3, 4, 5, 6, 7], [0], True),  # a block is missing somewhere: where is a guess
        ([1, 2, 3], [0], False),  # two keys, but the blocks of one
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0], False),  # more blocks than two keys hold
        ([], [0], False),
    ],
)
def test_blocks_that_do_not_fit_the_keys_are_not_guessed(
    ids: list[int], indices: list[int], store: bool
) -> None:
    result = plan([key(0), key(1)], ids, [len(ids)], indices, store=store)
    assert not result.chunks
    assert result.unmapped == [key(0), key(1)]


def test_several_groups_with_their_own_starts() -> None:
    keys = [key(0, 0), key(1, 0), key(7, 1)]
    result = plan(keys, [1, 2, 3, 4, 5, 6, 7, 8, 30, 31], [8, 2], [0, 30])
    assert rows(result) == [
        (key(0, 0), [1, 2, 3, 4], 0),
        (key(1, 0), [5, 6, 7, 8], 0),
        (key(7, 1), [30, 31], 2),
    ]


def test_one_unclear_group_leaves_the_others_alone() -> None:
    keys = [key(0, 0), key(7, 1)]
    result = plan(keys, [1, 2, 3, 4, 30], [4, 1], [0, 0], store=True)
    assert rows(result) == [(key(0, 0), [1, 2, 3, 4], 0)]
    assert result.unmapped == [key(7, 1)]


def test_group_ids_need_not_be_positions() -> None:
    result = plan([key(0, 2)], [1, 2, 3, 4], [4], [0], groups=(2,))
    assert rows(result) == [(key(0, 2), [1, 2, 3, 4], 0)]


def test_keys_of_an_unknown_group_are_unmapped() -> None:
    result = plan([key(0, 5)], [1, 2, 3, 4], [4], [0])
    assert result.unmapped == [key(0, 5)]


def test_a_group_without_keys_or_blocks_is_skipped() -> None:
    result = plan([key(0, 1)], [1, 2, 3, 4], [0, 4], [0, 0])
    assert rows(result) == [(key(0, 1), [1, 2, 3, 4], 0)]
