"""Distances between KV pages: rounding is small, one wrong token is large, in every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402

from kvshelf.vllm.worker.compare import (  # noqa: E402
    TOLERANCES,
    Kind,
    Section,
    Verdict,
    compare,
    distance,
    tolerances,
)

BLOCKS, TOKENS, HEADS, SIZE = 4, 16, 2, 32
DTYPES = {
    Kind.FLOAT32: torch.float32,
    Kind.FLOAT16: torch.float16,
    Kind.BFLOAT16: torch.bfloat16,
    Kind.FLOAT8_E4M3: torch.float8_e4m3fn,
    Kind.FLOAT8_E5M2: torch.float8_e5m2,
}
# Relative rounding of a value that was computed twice, and then kept in this kind.
NOISE = {
    Kind.FLOAT32: 1e-5,
    Kind.FLOAT16: 2e-3,
    Kind.BFLOAT16: 1e-2,
    Kind.FLOAT8_E4M3: 1e-2,
    Kind.FLOAT8_E5M2: 1e-2,
}
FLOATS = list(DTYPES)


def values(seed: int) -> np.ndarray[Any, Any]:
    """[blocks, tokens, heads, head size], as a model would write them."""
    return np.random.default_rng(seed).normal(size=(BLOCKS, TOKENS, HEADS, SIZE))


def page(kind: Kind, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of one page of each block."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(DTYPES[kind])
    return tensor.reshape(BLOCKS, -1).view(torch.uint8).numpy().copy()


def noisy(kind: Kind, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(9)
    return array * (1 + NOISE[kind] * rng.normal(size=array.shape))


def verdict(kind: Kind, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Verdict:
    sections = [(Section(kind),)]
    return compare(one, other, [one.shape[1]], sections, TOLERANCES).verdict


@pytest.mark.parametrize("kind", FLOATS)
def test_equal_bytes_are_equal(kind: Kind) -> None:
    assert verdict(kind, page(kind, values(1)), page(kind, values(1))) is Verdict.EQUAL


@pytest.mark.parametrize("kind", FLOATS)
def test_rounding_is_within_the_tolerance(kind: Kind) -> None:
    one, other = page(kind, values(1)), page(kind, noisy(kind, values(1)))
    assert (one != other).any()
    assert verdict(kind, one, other) is Verdict.WITHIN_TOLERANCE


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("packed", [False, True], ids=["by token", "by dimension"])
def test_one_wrong_token_is_seen(kind: Kind, packed: bool) -> None:
    """Also where attention packs keys by dimension: then it is one value of each window."""
    right, wrong = values(1), values(1)
    wrong[2, 7] = values(2)[2, 7]
    if packed:
        right, wrong = right.transpose(0, 2, 3, 1), wrong.transpose(0, 2, 3, 1)
    assert verdict(kind, page(kind, right), page(kind, wrong)) is Verdict.DIFFERENT


@pytest.mark.parametrize("kind", FLOATS)
def test_values_that_were_never_written_are_seen(kind: Kind) -> None:
    wrong = values(1)
    wrong[3, -1] = 0
    assert verdict(kind, page(kind, values(1)), page(kind, wrong)) is Verdict.DIFFERENT


@pytest.mark.parametrize("kind", FLOATS)
def test_values_beside_much_longer_keys_are_seen(kind: Kind) -> None:
    """The keys of some models are a hundred times as long as their values."""
    right, wrong = values(1), values(1)
    wrong[1, 3, 1] = values(2)[1, 3, 1]
    scale = np.array([100.0, 1.0]).reshape(1, 1, 2, 1)
    assert verdict(kind, page(kind, right * scale), page(kind, wrong * scale)) is Verdict.DIFFERENT


def test_rounding_of_tiny_values_does_not_count() -> None:
    right, other = values(1), values(1)
    right[0, 0] *= 1e-9
    other[0, 0] *= -1e-9
    kind = Kind.BFLOAT16
    assert verdict(kind, page(kind, right), page(kind, other)) is Verdict.WITHIN_TOLERANCE


@pytest.mark.parametrize("kind", [kind for kind in FLOATS if kind is not Kind.FLOAT8_E4M3])
def test_infinities_count_only_where_they_differ(kind: Kind) -> None:
    right, wrong = values(1), values(1)
    right[0, 0, 0, :2] = wrong[0, 0, 0, :2] = np.inf, np.nan
    wrong[1, 0] *= 1 + NOISE[kind]
    one = page(kind, right)
    assert distance(one, page(kind, wrong), kind) < TOLERANCES[kind]
    wrong[1, 1, 1, 1] = np.inf
    assert distance(one, page(kind, wrong), kind) == np.inf
    assert distance(page(kind, wrong), one, kind) == np.inf


def test_bytes_of_unknown_kind_are_judged_by_how_many_differ() -> None:
    rng = np.random.default_rng(3)
    right = rng.integers(0, 256, (BLOCKS, 2048), dtype=np.uint8)
    near, wrong = right.copy(), right.copy()
    near[:, ::4] += 1
    wrong[2, 512:1024] = rng.integers(0, 256, 512)
    assert verdict(Kind.BYTES, right, near) is Verdict.WITHIN_TOLERANCE
    assert verdict(Kind.BYTES, right, wrong) is Verdict.DIFFERENT


def test_each_part_of_a_page_is_read_as_what_it_is() -> None:
    half, full = page(Kind.BFLOAT16, values(1)), page(Kind.FLOAT32, values(2))
    wrong = values(2)
    wrong[0, 0] *= 1.05  # rounding for the one kind, not for the other
    one = np.concatenate([half, full], axis=1)
    other = np.concatenate([half, page(Kind.FLOAT32, wrong)], axis=1)
    sections = [(Section(Kind.BFLOAT16, half.shape[1]), Section(Kind.FLOAT32))]
    found = compare(one, other, [one.shape[1]], sections, TOLERANCES)
    assert (found.verdict, found.page) == (Verdict.DIFFERENT, 0)
    limits = tolerances(0.0, Kind.BFLOAT16)  # a model that computes in it rounds no finer
    assert compare(one, other, [one.shape[1]], sections, limits).verdict is Verdict.WITHIN_TOLERANCE


def test_the_page_that_differs_is_named() -> None:
    kind = Kind.FLOAT32
    pages = [page(kind, values(seed)) for seed in range(3)]
    wrong = values(1)
    wrong[0, 0] = values(7)[0, 0]
    other = [pages[0], page(kind, wrong), pages[2]]
    sizes, sections = [each.shape[1] for each in pages], [(Section(kind),)] * 3
    one, two = np.concatenate(pages, axis=1), np.concatenate(other, axis=1)
    assert compare(one, two, sizes, sections, TOLERANCES).page == 1


def test_a_users_tolerance_is_for_all_kinds() -> None:
    assert set(tolerances(0.7, Kind.BFLOAT16).values()) == {0.7}
    assert tolerances(0.0, None) == TOLERANCES


@pytest.mark.parametrize("kind", [Kind.FLOAT8_E4M3, Kind.FLOAT8_E5M2])
def test_bytes_are_8_bit_floats_as_torch_reads_them(kind: Kind) -> None:
    from kvshelf.vllm.worker.compare import _float8_table

    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(DTYPES[kind]).to(torch.float32).numpy()
    np.testing.assert_array_equal(_float8_table(kind), theirs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [Kind.FLOAT32, Kind.FLOAT16, Kind.BFLOAT16])
def test_bytes_that_are_no_kv_are_different(kind: Kind) -> None:
    """Values whose squares are no float32, and every kind of NaN, are among random bytes."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        one, other = rng.integers(0, 256, (2, *page(kind, values(1)).shape), dtype=np.uint8)
        assert verdict(kind, one, other) is Verdict.DIFFERENT
        assert verdict(kind, page(kind, values(1)), one) is Verdict.DIFFERENT
    huge = np.full((BLOCKS, TOKENS, HEADS, SIZE), 6e4 if kind is Kind.FLOAT16 else 3e38)
    assert verdict(kind, page(kind, huge), page(kind, -huge)) is Verdict.DIFFERENT
    assert verdict(kind, page(kind, values(1)), page(kind, huge)) is Verdict.DIFFERENT


def test_bytes_behind_the_last_value_do_not_count() -> None:
    one = np.pad(page(Kind.FLOAT32, values(1)), ((0, 0), (0, 3)))
    other = one.copy()
    other[:, -3:] = 255
    other[0, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    assert distance(one, other, Kind.FLOAT32) == np.inf
    other[0, :4] = one[0, :4]
    assert distance(one, other, Kind.FLOAT32) == 0
