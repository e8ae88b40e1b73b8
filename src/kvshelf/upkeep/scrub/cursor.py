"""Where a scrub stopped: one small file in the root, written whole. One thread."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from kvshelf.disk.documents import read_json
from kvshelf.disk.layout import SCRUB_CURSOR, parse_chunk_path
from kvshelf.upkeep.scrub.mount import temp_file

VERSION = 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """Attributes:
    after: path of the last chunk file that was verified; "" before the first of a pass.
    passes: how many passes over the shelf came to their end.
    """

    after: str = ""
    passes: int = 0


def load(root: int) -> Cursor:
    """The cursor in a root, given its descriptor; the start if there is none.

    Raises:
        ValueError: it is damaged, a link, or of another version.
        OSError: it cannot be read.
    """
    try:
        value = read_json(SCRUB_CURSOR, dir_fd=root)
    except FileNotFoundError:
        return Cursor()
    if not isinstance(value, dict) or value.get("kvshelf") != VERSION:
        raise ValueError("not a cursor of this version")
    after, passes = value.get("after"), value.get("passes")
    # No path but a chunk's: nothing else was ever verified.
    if not isinstance(after, str) or (after and parse_chunk_path(after) is None):
        raise ValueError("it names no chunk")
    if type(passes) is not int or passes < 0:
        raise ValueError("it has no number of passes")
    return Cursor(after, passes)


def save(root: int, cursor: Cursor) -> None:
    """Replace the cursor. Of several scrubs the last one to write says where the next begins.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"kvshelf": VERSION, "after": cursor.after, "passes": cursor.passes})
    with temp_file(root, mode=0o640) as (descriptor, name):
        # Not synced: what a power cut can cost is the place, for which a storage's cache would pay.
        os.write(descriptor, text.encode() + b"\n")
        os.replace(name, SCRUB_CURSOR, src_dir_fd=root, dst_dir_fd=root)
