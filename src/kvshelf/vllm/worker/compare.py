"""How far apart the bytes of two KV pages are, and how far rounding alone moves them.

Pure: NumPy only, any thread. The same tokens in batches of other shapes give other last bits, so
equal bytes are the exception. What tells rounding from other content is the size of a difference:

    distance of WINDOW_VALUES consecutive values = |computed - stored|, over the larger of the
        window's own length and the low quartile of its page's windows
    distance of a chunk                          = that of its worst window

A window is small, so one wrong token in a chunk is as far as a wrong chunk. The quartile keeps
windows of tiny values, which are rounding and nothing else, from counting; it is a low one because
a page holds keys and values, and the keys of some models are many times longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A quarter to an eighth of a head's vector: where CPU attention packs keys by dimension, a window
# holds one dimension of 16 tokens, and one wrong token of them still is a quarter of its length.
WINDOW_VALUES = 16
# Of pages whose numbers cannot be read, bytes are counted in windows of so many.
WINDOW_BYTES = 256

Bytes = NDArray[np.uint8]
# float64: squares of float32 values of 1e20 and more are no float32, and of bytes that are no KV
# there may be such values.
Floats = NDArray[np.float64]


class Kind(Enum):
    """How the values in a part of a page are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    BYTES = "bytes"  # numbers that this module cannot read: scales between them, or integers


# The largest distance that counts as rounding: 8 times the worst that was measured on an H100 where
# a model of random weights computed in other batches, 0.0615 for BFLOAT16; of other content it was
# 1.5 (docs/howto/audit.md; benchmarks/gpu/audit.py). FLOAT32 leaves room for TF32. FLOAT8_E5M2 is
# not measured: its rounding is twice that of FLOAT8_E4M3. Of BYTES: the largest share of a window's
# bytes that differ; bytes of other content differ nearly all.
TOLERANCES: dict[Kind, float] = {
    Kind.FLOAT32: 0.01,
    Kind.FLOAT16: 0.1,
    Kind.BFLOAT16: 0.5,
    Kind.FLOAT8_E4M3: 0.6,
    Kind.FLOAT8_E5M2: 0.7,
    Kind.BYTES: 0.6,
}


def tolerances(given: float, model: Kind | None) -> dict[Kind, float]:
    """The largest distances that count as rounding.

    Args:
        given: by the user, for all kinds; 0: ``TOLERANCES``.
        model: in which numbers the model computes: what it writes is rounded no finer, also where
            it is kept in more digits.
    """
    if given > 0:
        return dict.fromkeys(Kind, given)
    least = TOLERANCES[model] if model is not None else 0.0
    return {kind: max(value, least) for kind, value in TOLERANCES.items()}


_SIZES = {Kind.FLOAT32: 4, Kind.FLOAT16: 2, Kind.BFLOAT16: 2}


@dataclass(frozen=True, slots=True)
class Section:
    """Consecutive bytes of a page that hold values of one kind; ``page_bytes`` of them, or, as the
    last section of a page, all that is left (0)."""

    kind: Kind
    page_bytes: int = 0


class Verdict(Enum):
    """What a comparison says; values are those of the metric's label."""

    EQUAL = "equal"
    WITHIN_TOLERANCE = "within_tolerance"
    DIFFERENT = "different"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    Attributes:
        distance: of the worst window, in units of its tolerance: above 1 is different.
        page: index of the page in which that window is.
    """

    verdict: Verdict
    distance: float = 0.0
    page: int = 0


def compare(
    computed: Bytes,
    stored: Bytes,
    page_bytes: Sequence[int],
    sections: Sequence[Sequence[Section]],
    limits: dict[Kind, float],
) -> Comparison:
    """Compare two chunks.

    Args:
        computed: uint8[blocks, bytes of a block], the block's pages one after the other.
        stored: the same.
        page_bytes: of each page of a block.
        sections: of each page.
        limits: from ``tolerances``.
    """
    if np.array_equal(computed, stored):
        return Comparison(Verdict.EQUAL)
    worst, worst_page, begin = 0.0, 0, 0
    for page, (size, parts) in enumerate(zip(page_bytes, sections, strict=True)):
        for kind, start, stop in _parts(parts, size):
            columns = slice(begin + start, begin + stop)
            found = distance(computed[:, columns], stored[:, columns], kind) / limits[kind]
            if found > worst:
                worst, worst_page = found, page
        begin += size
    verdict = Verdict.WITHIN_TOLERANCE if worst <= 1 else Verdict.DIFFERENT
    return Comparison(verdict, worst, worst_page)


def distance(one: Bytes, other: Bytes, kind: Kind) -> float:
    """Of the worst window of one section of a page of several blocks."""
    if np.array_equal(one, other):
        return 0.0
    if kind is Kind.BYTES:
        windows = _windows(one != other, WINDOW_BYTES)
        return float(windows.mean(axis=-1, dtype=np.float32).max())
    whole = one.shape[1] // _SIZES.get(kind, 1) * _SIZES.get(kind, 1)
    one, other = one[:, :whole], other[:, :whole]  # bytes behind the last whole value are no value
    a, b = _floats(one, kind), _floats(other, kind)
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0, a - b)  # equal infinities differ by nothing
    if not np.isfinite(difference).all():
        # Not numbers where the other has some, or where bytes differ: no rounding makes those.
        same = (one == other).reshape(*a.shape, -1).all(axis=-1)
        difference = np.where(same, 0, difference)
        if not np.isfinite(difference).all():
            return float("inf")
    lengths = np.maximum(_lengths(a), _lengths(b))
    scale = np.maximum(lengths, max(_low_quartile(lengths), float(np.finfo(np.float32).tiny)))
    return float((_lengths(difference) / scale).max())


def _parts(sections: Sequence[Section], page_bytes: int) -> Iterator[tuple[Kind, int, int]]:
    start = 0
    for section in sections:
        stop = start + section.page_bytes if section.page_bytes else page_bytes
        yield section.kind, start, min(stop, page_bytes)
        start = stop


def _lengths(values: Floats) -> Floats:
    """Of each window; what is no finite number counts as nothing."""
    clean = np.where(np.isfinite(values), values, 0)
    windows = _windows(clean, WINDOW_VALUES)
    return np.sqrt(np.einsum("bwv,bwv->bw", windows, windows))


def _low_quartile(lengths: Floats) -> float:
    """Of the windows that hold anything."""
    filled = lengths[lengths > 0]
    return float(np.percentile(filled, 25)) if filled.size else 0.0


def _windows(values: NDArray[Any], size: int) -> NDArray[Any]:
    """[blocks, windows, size]; the last window of a block is filled up with zeros."""
    blocks, count = values.shape
    rest = -count % size
    if rest:
        values = np.pad(values, ((0, 0), (0, rest)))
    return values.reshape(blocks, -1, size)


def _floats(data: Bytes, kind: Kind) -> Floats:
    """The values as float64[blocks, values]."""
    whole = np.ascontiguousarray(data)
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        if kind is Kind.FLOAT32:
            return whole.view(np.float32).astype(np.float64)
        if kind is Kind.FLOAT16:
            return whole.view(np.float16).astype(np.float64)
        if kind is Kind.BFLOAT16:
            wide = whole.view(np.uint16).astype(np.uint32) << 16
            return wide.view(np.float32).astype(np.float64)
        return _float8_table(kind)[whole]


def _float8_table(kind: Kind) -> Floats:
    """The 256 values of an 8-bit float: e4m3fn has no infinities, e5m2 has IEEE's."""
    exponent_bits, mantissa_bits = (4, 3) if kind is Kind.FLOAT8_E4M3 else (5, 2)
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits)
    normal = (1 + fraction) * 2.0 ** (exponent - bias)
    values = sign * np.where(exponent == 0, fraction * 2.0 ** (1 - bias), normal)
    if kind is Kind.FLOAT8_E4M3:
        values[(code & 0x7F) == 0x7F] = np.nan
    else:
        last = exponent == (1 << exponent_bits) - 1
        values[last] = np.where(mantissa[last] == 0, sign[last] * np.inf, np.nan)
    return values
