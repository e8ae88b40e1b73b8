"""What a shelf may take, and how much must go: pure arithmetic, no I/O.

A limit is the high mark: when the shelf is above it, chunks go until it is at its low mark,
``low_percent`` of the limit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from kvshelf.disk.volume import Volume
from kvshelf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Amount:
    """Chunk files and their bytes (the lengths of the files)."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.files + other.files, self.bytes + other.bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.files - other.files, self.bytes - other.bytes)

    def __bool__(self) -> bool:
        return self.files > 0 or self.bytes > 0


class Usage(dict[str, Amount]):
    """What is on a shelf, by namespace. Not changed once it is made: it is added up once."""

    @functools.cached_property
    def total(self) -> Amount:
        return _sum(self)


def total(usage: Mapping[str, Amount]) -> Amount:
    """Of all namespaces."""
    return usage.total if isinstance(usage, Usage) else _sum(usage)


def _sum(usage: Mapping[str, Amount]) -> Amount:
    """A shelf may have 10,000 namespaces: it makes no object a namespace."""
    amounts = usage.values()
    return Amount(sum(each.files for each in amounts), sum(each.bytes for each in amounts))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a shelf may take. None: no such limit.

    Attributes:
        shelf_bytes: of all chunks together.
        volume_percent: of the file system that may be used, by anybody.
        inode_percent: of its inodes that may be used, by anybody.
        namespace_bytes: of each namespace's chunks.
        namespace_bytes_of: of the chunks of one namespace, by its folder or the beginning of it
            (a model's name); the longest that fits counts, and before ``namespace_bytes``.
        low_percent: down to this percentage of a limit chunks go once it is exceeded.
        keep_percent: of the file system: below so many bytes of its own ``volume_percent`` and
            ``inode_percent`` do not shrink the shelf, because it is others' data that fills the
            file system then.
    """

    shelf_bytes: int | None = None
    volume_percent: float | None = None
    inode_percent: float | None = None
    namespace_bytes: int | None = None
    namespace_bytes_of: Mapping[str, int] = field(default_factory=dict)
    low_percent: float = 95.0
    keep_percent: float = 10.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        for name in ("shelf_bytes", "namespace_bytes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(name, value, "more than 0")
        for folder, value in self.namespace_bytes_of.items():
            if value <= 0 or not folder:
                raise ConfigError("namespace_bytes_of", {folder: value}, "more than 0")
        for name in ("volume_percent", "inode_percent", "low_percent", "keep_percent"):
            value = getattr(self, name)
            low = 0 if name == "keep_percent" else 1
            if value is not None and not low <= value <= 100:
                raise ConfigError(name, value, f"{low} to 100")

    def __bool__(self) -> bool:
        one = (self.shelf_bytes, self.volume_percent, self.inode_percent, self.namespace_bytes)
        return any(limit is not None for limit in one) or bool(self.namespace_bytes_of)

    @property
    def limits_namespaces(self) -> bool:
        """Whether any limit is of one namespace's bytes."""
        return self.namespace_bytes is not None or bool(self.namespace_bytes_of)

    def of_namespace(self, folder: str) -> int | None:
        fitting = [name for name in self.namespace_bytes_of if folder.startswith(name)]
        return self.namespace_bytes_of[max(fitting, key=len)] if fitting else self.namespace_bytes


@dataclass(frozen=True, slots=True)
class Need:
    """What must go.

    Attributes:
        amount: at least so many files and so many bytes.
        reason: the limit that says so, by its name in ``Limits``.
        folder: the namespace that it must be of; None for any.
        short: what the limit asks for beyond that, and does not get because of ``keep_percent``
            or because the shelf has no more.
    """

    amount: Amount
    reason: str
    folder: str | None = None
    short: Amount = Amount()


def needs(
    limits: Limits,
    volume: Volume,
    usage: Mapping[str, Amount],
    evicting: bool = False,
    *,
    stuck: Container[str | None] = (),
    held: Container[str] = (),
) -> list[Need]:
    """What must go now, namespaces' own limits first, then the shelf's.

    Args:
        usage: what is on the shelf, by namespace.
        evicting: whether chunks are going already: then down to the low marks; else nothing as
            long as no limit is exceeded.
        stuck: namespaces, and None for the shelf, of which nothing can go now, whatever is needed.
        held: limits of the shelf that removal does not help to keep: all that they ask for is
            short.
    """
    found = []
    for folder, amount in usage.items() if limits.limits_namespaces else ():
        limit = limits.of_namespace(folder)
        over = _over(amount.bytes, limit, limits.low_percent, evicting)
        if over and folder not in stuck:
            found.append(Need(Amount(0, over), "namespace_bytes", folder))
    # What goes for a namespace's limit helps the shelf's; its files are not known before.
    gone = sum(need.amount.bytes for need in found)
    shelf = total(usage) - Amount(0, gone)
    wanted = list(_of_shelf(limits, volume, shelf, gone, evicting))
    if wanted and None not in stuck:
        found.append(_largest(limits, volume, shelf, wanted, held))
    return [need for need in found if need.amount or need.short]


def may_exceed(limits: Limits, usage: Mapping[str, Amount], grown_bytes: int) -> bool:
    """Whether a limit of bytes is exceeded if the shelf has grown by so much, wherever it was."""
    shelf_limit = limits.shelf_bytes
    if shelf_limit is not None and total(usage).bytes + grown_bytes > shelf_limit:
        return True
    for folder, amount in usage.items() if limits.limits_namespaces else ():
        limit = limits.of_namespace(folder)
        if limit is not None and amount.bytes + grown_bytes > limit:
            return True
    # A namespace that is not known yet may have it all.
    own = (limits.namespace_bytes, *limits.namespace_bytes_of.values())
    return any(limit is not None and grown_bytes > limit for limit in own)


def _over(used: float, limit: float | None, low_percent: float, evicting: bool) -> int:
    """How much is above the low mark, 0 unless the high mark is exceeded or it goes on."""
    if limit is None:
        return 0
    low = limit * low_percent / 100
    if used <= (low if evicting else limit):
        return 0
    return math.ceil(used - low)


def _of_shelf(
    limits: Limits, volume: Volume, shelf: Amount, gone: int, evicting: bool
) -> Iterator[tuple[str, Amount]]:
    low = limits.low_percent
    over = _over(shelf.bytes, limits.shelf_bytes, low, evicting)
    if over:
        yield "shelf_bytes", Amount(0, over)
    if limits.volume_percent is not None and volume.total_bytes:
        limit = volume.total_bytes * limits.volume_percent / 100
        over = _over(volume.used_bytes - gone, limit, low, evicting)
        if over:
            yield "volume_percent", Amount(0, over)
    if limits.inode_percent is not None and volume.total_inodes:
        limit = volume.total_inodes * limits.inode_percent / 100
        over = _over(volume.used_inodes, limit, low, evicting)
        if over:
            yield "inode_percent", Amount(over, 0)


def _largest(
    limits: Limits,
    volume: Volume,
    shelf: Amount,
    wanted: list[tuple[str, Amount]],
    held: Container[str],
) -> Need:
    """All limits' demands as one: what meets the largest in files and in bytes meets each. The
    reason is the one that asks for most."""
    keep = math.ceil(volume.total_bytes * limits.keep_percent / 100)
    spare = max(0, shelf.bytes - keep)
    above_floor = Amount(shelf.files * spare // max(1, shelf.bytes), spare)
    files = bytes_ = 0
    short = Amount()
    for reason, amount in wanted:
        most = shelf if reason == "shelf_bytes" else above_floor
        most = Amount() if reason in held else most
        files = max(files, min(amount.files, most.files))
        bytes_ = max(bytes_, min(amount.bytes, most.bytes))
        missing = Amount(max(0, amount.files - most.files), max(0, amount.bytes - most.bytes))
        if missing:
            short = Amount(max(short.files, missing.files), max(short.bytes, missing.bytes))
    wanted = [each for each in wanted if each[0] not in held] or wanted
    reason = max(wanted, key=lambda each: (each[1].bytes, each[1].files))[0]
    return Need(Amount(files, bytes_), reason, None, short)
