"""Pages a chunk: files made and hits lost, for prompts that share and fork. No storage, no SGLang.

    python benchmarks/bench_sglang_groups.py

A model of many engines: conversations with one of some system prompts, several turns each. A turn
goes to any engine. An engine keeps what it has seen in its tree, stores what is new there from the
page on where it forks, and asks the shelf for what its tree lacks. One
request in a hundred finds an engine started anew. Figures are shares of the pages
that a shelf with a page a chunk has for the same requests.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from kvshelf.sglang.groups import Groups

ENGINES, SYSTEMS, CONVERSATIONS, TURNS = 4, 8, 400, 5
RESTARTS = 0.01  # of an engine, a request


@dataclass
class Shelf:
    """Blocks of each chunk; a store replaces a chunk that lacks some."""

    chunks: dict[str, set[int]] = field(default_factory=dict)
    files_made: int = 0
    pages_written: int = 0


@dataclass
class Engine:
    """One SGLang with room for everything, and its view of the shelf."""

    groups: Groups
    tree: set[str] = field(default_factory=set)


def serve(engine: Engine, shelf: Shelf, pages: list[str]) -> tuple[int, int]:
    """(pages loaded, pages computed) of one request."""
    own = next((i for i, page in enumerate(pages) if page not in engine.tree), len(pages))
    rest = pages[own:]
    found = engine.groups.found(rest, [page in shelf.chunks for page in rest])
    hits = found.index(False) if False in found else len(found)
    loaded = 0
    for part in engine.groups.to_load(rest[:hits]):
        blocks = range(part.first_block, part.first_block + part.end - part.begin)
        if not shelf.chunks.get(part.name, set()).issuperset(blocks):
            break
        loaded = part.end
    new = pages[own + loaded :]
    for begin in range(0, len(new), 128):
        for part in engine.groups.to_store(new[begin : begin + 128]):
            blocks = set(range(part.first_block, part.first_block + part.end - part.begin))
            if not blocks <= shelf.chunks.get(part.name, set()):
                shelf.chunks[part.name] = blocks
                shelf.files_made += 1
                shelf.pages_written += len(blocks)
    engine.tree.update(pages)
    return loaded, len(new)


def requests(chance: random.Random) -> list[list[str]]:
    """Prompts as chained page names, in the order of their arrival."""
    systems = [chance.randint(20, 120) for _ in range(SYSTEMS)]
    turns: list[tuple[int, int, list[tuple[str, int]]]] = []
    for conversation in range(CONVERSATIONS):
        system = chance.randrange(SYSTEMS)
        parts = [(f"s{system}", systems[system])]
        for turn in range(TURNS):
            parts = [*parts, (f"c{conversation}t{turn}", chance.randint(3, 60))]
            turns.append((turn, chance.randrange(1 << 30), parts))
    prompts = []
    for _, _, parts in sorted(turns):
        names, before = [], ""
        for word, count in parts:
            for i in range(count):
                before = f"{hash((before, word, i)):x}"
                names.append(before)
        prompts.append(names)
    return prompts


def main() -> None:
    told = {}
    prompts = requests(random.Random(1))
    for most in (1, 4, 16, 32):
        chance, shelf = random.Random(2), Shelf()
        engines = [Engine(Groups(most)) for _ in range(ENGINES)]
        loaded = computed = 0
        for pages in prompts:
            if chance.random() < RESTARTS:
                chance.choice(engines).tree.clear()
            more, new = serve(chance.choice(engines), shelf, pages)
            loaded += more
            computed += new
        told[most] = (loaded, computed, shelf.files_made, shelf.pages_written)
    first = told[1]
    rows = {
        most: {
            "hits": round(values[0] / first[0], 3),
            "computed": round(values[1] / first[1], 3),
            "files": round(values[2] / first[2], 3),
            "bytes_written": round(values[3] / first[3], 3),
        }
        for most, values in told.items()
    }
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
