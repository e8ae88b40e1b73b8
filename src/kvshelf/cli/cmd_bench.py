"""``kvshelf bench``: what a mount moves for kvshelf, beside plain system calls."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
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
    table_lines,
)
from kvshelf.cli.units import Reader, option, size_in, whole
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
    option(parser, "--size", size_in("2MB", "1TiB"), "moved by a measurement", "512MB")
    option(parser, "--chunk-size", size_in("1MB", "4GiB"), "of a chunk file", "16MB")
    option(parser, "--threads", Reader("N,N", str), "numbers of I/O threads", "1,4,12")
    piece_help = "of a checksum's piece, a whole number of MiB"
    option(parser, "--piece-size", Reader("SIZE", _piece_size), piece_help, "4MiB")
    option(parser, "--rounds", whole(1, 1000), "of each", 3)
    only_help = f"of {', '.join(OPERATIONS)}"
    parser.add_argument("--only", default=",".join(OPERATIONS), metavar="OP,OP", help=only_help)
    parser.add_argument("--direct", action="store_true", help="payloads by O_DIRECT")
    option(
        parser,
        "--bytes-per-token",
        size_in("1", "1GiB"),
        "of KV cache, to say tokens a second; the default is Llama-3.1-8B's in 16 bits",
        "128KiB",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the rates (needs matplotlib)")


def _piece_size(text: str) -> int:
    found: int = size_in("1MiB", "64MiB")(text)
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
        with drawing(Path(options.plot)):
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


@contextlib.contextmanager
def drawing(path: Path) -> Iterator[None]:
    """What keeps a picture from being drawn, as wrong usage of ``--plot``."""
    try:
        yield
    except ImportError as error:
        message = "--plot needs matplotlib: pip install 'kvshelf[plot]'"
        raise CommandError(Exit.USAGE, message) from error
    except (OSError, ValueError) as error:
        raise CommandError(Exit.USAGE, f"--plot {safe(str(path))}: {error}") from error


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
    head = ("operation", "threads", "kvshelf", "plain", "ratio", "")
    print("\n".join(table_lines([head, *map(_cells, rows)], right=range(1, 5))))


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
        f"{_rate(row.engine)} {row.unit}",
        "" if row.plain is None else _rate(row.plain),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        more,
    )


def _rate(value: float) -> str:
    return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"


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
    from matplotlib.figure import Figure  # noqa: PLC0415

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
    figure.savefig(path)
