"""Keys are vLLM's own: the block hash, then the group index."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshelf.disk.keys import (
    HASH_BYTES_MIN,
    KEY_BYTES_MAX,
    group_of,
    hash_of,
    make_key,
    make_mask,
    masked,
    masked_all,
)

HASHES = st.binary(min_size=HASH_BYTES_MIN, max_size=KEY_BYTES_MAX - 4)
GROUPS = st.integers(0, 2**32 - 1)


@given(HASHES, GROUPS)
def test_a_key_gives_back_what_it_was_made_of(block_hash: bytes, group: int) -> None:
    key = make_key(block_hash, group)
    assert (hash_of(key), group_of(key)) == (block_hash, group)
    assert len(key) == len(block_hash) + 4


@given(HASHES, GROUPS, HASHES, GROUPS)
def test_different_chunks_have_different_keys(a: bytes, i: int, b: bytes, j: int) -> None:
    assert (make_key(a, i) == make_key(b, j)) == ((a, i) == (b, j))


def test_the_group_is_big_endian_behind_the_hash() -> None:
    assert make_key(b"12345678", 258) == b"12345678\0\0\1\2"


@pytest.mark.parametrize("size", [0, 7, 125, 200])
def test_hashes_of_odd_lengths_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        make_key(bytes(size), 0)


@pytest.mark.parametrize("group", [-1, 2**32])
def test_groups_that_do_not_fit_are_refused(group: int) -> None:
    with pytest.raises(OverflowError):
        make_key(bytes(32), group)


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_makes_the_same_keys() -> None:
    base = importlib.import_module("vllm.v1.kv_offload.base")
    for group in (0, 1, 258, 2**31):
        assert base.make_offload_key(bytes(range(32)), group) == make_key(bytes(range(32)), group)


@given(HASHES, GROUPS, st.text(max_size=9), st.text(max_size=9))
def test_masks_come_off_again_in_any_order(block_hash: bytes, group: int, a: str, b: str) -> None:
    key, one, other = make_key(block_hash, group), make_mask(a), make_mask(b)
    assert masked(masked(key, one), one) == key
    assert group_of(masked(key, one)) == group
    assert masked(masked(key, one), other) == masked(masked(key, other), one)
    assert (masked(key, one) == masked(key, other)) == (a == b)
    assert masked(key, b"") == key
    assert masked_all([key, key], one) == [masked(key, one)] * 2


def test_a_short_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of 3 bytes"):
        masked(make_key(bytes(32), 0), b"abc")
