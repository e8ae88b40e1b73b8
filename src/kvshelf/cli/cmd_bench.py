"""``kvshelf bench``: what a mount moves for kvshelf, beside plain system calls."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvshelf.bench import Row, Scratch, Workload, measure, shortage
from kvshelf.bench.measure import OPERATIONS
from kvshelf.cli.common import (
    CommandError,
    Exit,
    asked,
    check_path,
    ended_as_by_ctrl_c,
    print_json,
    safe,
)
from kvshelf.cli.units import size_in, whole
from kvshelf.disk.root import why_not_writable
from kvshelf.disk.volume import NO_ROOM, volume_of, why_no_room
from kvshelf.engine import Direct
from kvshelf.text import bytes_text

HELP = "measure stores, loads and lookups on a mount"
DESCRIPTION = """\
Measures a directory as kvshelf uses it: stores, loads from the page cache and from
the storage behind it (cold-load), lookups of absent keys, and loads while chunks are
stored (mixed); each beside plain write(), read() and stat() by as many threads in the
same rounds. ROOT may be a shelf or any other directory: the files lie in a folder of
their own, which is removed. Nothing else is touched.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="a directory on the mount")
    parser.add_argument(
        "--size",
        type=size_in("2MB", "1TiB"),
        default="512MB",
        metavar="SIZE",
        help="moved by a measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk-size",
        type=size_in("1MB", "4GiB"),
        default="16MB",
        metavar="SIZE",
        help="of a chunk file (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        default="1,4,12",
        metavar="N,N",
        help="numbers of I/O threads (default: %(default)s)",
    )
    parser.add_argument(
        "--piece-size",
        type=_piece_size,
        default="4MiB",
        metavar="SIZE",
        help="of a checksum's piece, a whole number of MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=whole(1, 1000),
        default=3,
        metavar="N",
        help="of each (default: %(default)s)",
    )
    parser.add_argument(
        "--only", default=",".join(OPERATIONS), metavar="OP,OP", help="of " + ", ".join(OPERATIONS)
    )
    parser.add_argument("--direct", action="store_true", help="payloads by O_DIRECT")
    parser.add_argument(
        "--bytes-per-token",
        type=size_in("1", "1GiB"),
        default="128KiB",
        metavar="SIZE",
        help="of KV cache, to say tokens a second (default: %(default)s, Llama-3.1-8B in 16 bits)",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the rates (needs matplotlib)")


def _piece_size(text: str) -> int:
    found = size_in("1MiB", "64MiB")(text)
    if found % (1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number of MiB")
    return found


def run(options: argparse.Namespace) -> Exit:
    workload = _workload(options)
    check_path(options.root)
    root = Path(options.root)
    if options.plot:
        check_picture(Path(options.plot))
    try:
        if not asked(str(root), root.is_dir):
            raise CommandError(Exit.NO_SHELF, f"{safe(str(root))} is no directory")
        missing = asked(str(root), lambda: shortage(root, workload))
        if missing:
            message = f"--size {bytes_text(options.size)} {missing}: {safe(str(root))}"
            raise CommandError(Exit.USAGE, message)
        with ended_as_by_ctrl_c(), Scratch(root) as scratch:
            rows = measure(scratch.path, workload, progress)
    except OSError as error:
        raise CommandError(
            Exit.FINDINGS, f"{safe(str(root))}: {_reason(error, root, 3 * workload.total_bytes)}"
        ) from error
    except MemoryError as error:
        message = f"--size {bytes_text(options.size)} needs more memory than there is"
        raise CommandError(Exit.USAGE, message) from error
    finally:
        progress("")
    if options.plot:
        _plot(rows, Path(options.plot), safe(str(root)))
    if options.json:
        print_json("kvshelf.bench/1", _json(options, workload, rows))
    else:
        print_rows(rows)
        _print_tokens(rows, options.bytes_per_token)
    return Exit.FINE


def _reason(error: OSError, root: Path, wanted_bytes: int) -> str:
    if error.errno not in NO_ROOM:
        return str(error)
    return "; ".join(why_no_room(error.errno, volume_of(root), wanted_bytes))


def _workload(options: argparse.Namespace) -> Workload:
    def usage(name: str, allowed: str) -> CommandError:
        value = getattr(options, name.replace("-", "_"))
        return CommandError(Exit.USAGE, f"--{name} {safe(str(value))}: {allowed}")

    if options.size < 2 * options.chunk_size:
        raise usage("size", f"two chunks at least, {bytes_text(2 * options.chunk_size)}")
    operations = tuple(options.only.split(","))
    if not operations or set(operations) - set(OPERATIONS):
        raise usage("only", f"some of {', '.join(OPERATIONS)}")
    try:
        threads = tuple(int(text) for text in options.threads.split(","))
    except ValueError:
        threads = ()
    if not threads or not all(1 <= each <= 256 for each in threads):
        raise usage("threads", "whole numbers from 1 to 256, with commas between")
    return Workload(
        total_bytes=options.size,
        chunk_bytes=options.chunk_size,
        threads=threads,
        piece_bytes=options.piece_size,
        rounds=options.rounds,
        direct=Direct.ON if options.direct else Direct.OFF,
        operations=operations,
    )


def check_picture(path: Path) -> None:
    """Before anything is measured: whether ``--plot`` can end well.

    Raises:
        CommandError: there is no such folder, or no right to write.
    """
    if not path.parent.is_dir():
        problem = f"{path.parent} is no directory"
    elif path.is_dir():
        problem = "it is a directory"
    elif not _is_writable(path):
        problem = "no right to write it"
    else:
        return
    raise CommandError(Exit.USAGE, f"--plot {safe(str(path))}: {safe(problem)}")


def _is_writable(path: Path) -> bool:
    """Tried: access(2) is refused by some containers."""
    if not path.exists():
        return why_not_writable(path.parent) is None
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENXIO  # a pipe without a reader
    return True


def progress(text: str) -> None:
    """What is under way, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_rows(rows: Sequence[Row]) -> None:
    """A table."""
    head = ("operation", "threads", "kvshelf", "plain", "ratio", "")
    lines = [head, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        first, *rest = cells
        texts = [first.ljust(widths[0])]
        texts += [
            cell.rjust(width) if index < 4 else cell
            for index, (cell, width) in enumerate(zip(rest, widths[1:], strict=True))
        ]
        print("  ".join(texts).rstrip())


def _print_tokens(rows: Sequence[Row], bytes_per_token: int) -> None:
    best = max((row.engine for row in rows if row.operation == "cold-load"), default=None)
    if best is not None:
        tokens = best * 1e9 / bytes_per_token
        print(
            f"\nA hit whose chunks another node stored loads at {tokens:,.0f} tokens/s here "
            f"({bytes_per_token:,} bytes a token).\nIt pays if the model computes fewer."
        )


def _cells(row: Row) -> tuple[str, ...]:
    more = ", ".join(
        f"{name.removesuffix('_ms').replace('_', ' ')} {value:.4g} ms"
        for name, value in row.more.items()
    )
    return (
        row.operation,
        str(row.threads),
        f"{row.engine:,.4g} {row.unit}" if row.engine < 1e4 else f"{row.engine:,.0f} {row.unit}",
        ""
        if row.plain is None
        else f"{row.plain:,.4g}"
        if row.plain < 1e4
        else f"{row.plain:,.0f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        more,
    )


def _json(options: argparse.Namespace, workload: Workload, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "root": options.root,
        "cores": os.cpu_count(),
        "size_bytes": options.size,
        "chunk_bytes": options.chunk_size,
        "rounds": workload.rounds,
        "direct": workload.direct.value,
        "rows": [row.to_json() for row in rows],
    }


def _plot(rows: Sequence[Row], path: Path, title: str) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise CommandError(
            Exit.USAGE, "--plot needs matplotlib: pip install 'kvshelf[plot]'"
        ) from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for operation in dict.fromkeys(row.operation for row in rows if row.unit == "GB/s"):
        these = [row for row in rows if row.operation == operation]
        (line,) = axes.plot(
            [row.threads for row in these], [row.engine for row in these], "o-", label=operation
        )
        if these[0].plain is not None:
            axes.plot(
                [row.threads for row in these],
                [row.plain or 0.0 for row in these],
                ":",
                color=line.get_color(),
                label=f"{operation}, plain",
            )
    axes.set(xlabel="I/O threads", ylabel="GB/s", title=title, ylim=(0, None))
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CommandError(Exit.USAGE, f"--plot {safe(str(path))}: {error}") from error
