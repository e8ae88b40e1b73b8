"""Pages in chunks: a model of a shelf, on which no page may come from another one's place."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshelf.sglang.groups import Groups, Part


class ModelShelf:
    """Chunks as sets of (block, page); stores replace a chunk that lacks blocks, as the engine."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.chunks: dict[str, dict[int, str]] = {}

    def there(self, pages: list[str]) -> list[bool]:
        return [page in self.chunks for page in pages]

    def store(self, groups: Groups, pages: list[str]) -> None:
        covered = []
        for part in groups.to_store(pages):
            assert 0 <= part.first_block < self.most
            wanted = {
                part.first_block + i - part.begin: pages[i] for i in range(part.begin, part.end)
            }
            covered += range(part.begin, part.end)
            if not wanted.keys() <= self.chunks.get(part.name, {}).keys():
                self.chunks[part.name] = wanted
        assert covered == list(range(len(pages)))

    def load(self, groups: Groups, pages: list[str]) -> list[bool]:
        good = [False] * len(pages)
        for part in groups.to_load(pages):
            chunk = self.chunks.get(part.name, {})
            blocks = range(part.first_block, part.first_block + part.end - part.begin)
            if all(block in chunk for block in blocks):
                for block, i in zip(blocks, range(part.begin, part.end), strict=True):
                    assert chunk[block] == pages[i], "another page's bytes"
                    good[i] = True
        return good

    def prefix(self, groups: Groups, pages: list[str]) -> int:
        """Pages that an engine without any would load."""
        found = groups.found(pages, self.there(pages))
        hits = found.index(False) if False in found else len(found)
        good = self.load(groups, pages[:hits])
        return good.index(False) if False in good else hits


def prompt(*parts: tuple[str, int]) -> list[str]:
    """Chained page names: a page's name tells all pages before it."""
    names, before = [], ""
    for word, count in parts:
        for i in range(count):
            before = f"{hash((before, word, i)):x}"
            names.append(before)
    return names


def test_one_page_a_chunk_is_the_page() -> None:
    groups = Groups(1)
    assert groups.found(["a", "b"], [True, False]) == [True, False]
    assert groups.to_load(["a", "b"]) == [Part("a", 0, 1, 0), Part("b", 1, 2, 0)]
    assert groups.to_store(["a", "b"]) == [Part("a", 0, 1, 0), Part("b", 1, 2, 0)]


def test_a_prompt_is_few_chunks() -> None:
    shelf, pages = ModelShelf(16), prompt(("a", 100))
    shelf.store(Groups(16), pages)
    assert len(shelf.chunks) == 7
    assert shelf.prefix(Groups(16), pages) == 100


def test_turns_follow_each_other_without_a_gap() -> None:
    """A turn begins in the middle of what would be a chunk, as SGLang stores it."""
    shelf, pages = ModelShelf(16), prompt(("a", 100))
    writer = Groups(16)
    for begin, end in ((0, 37), (37, 41), (41, 100)):
        shelf.store(writer, pages[begin:end])
    assert shelf.prefix(Groups(16), pages) == 100
    chunks = len(shelf.chunks)
    reader = Groups(16)
    reader.found(pages, shelf.there(pages))
    shelf.store(reader, pages)  # as one piece: nothing new
    assert len(shelf.chunks) == chunks


def test_a_fork_heals_once_it_is_computed() -> None:
    shelf, writer = ModelShelf(16), Groups(16)
    first, second = prompt(("s", 40), ("a", 30)), prompt(("s", 40), ("b", 30))
    shelf.store(writer, first)
    shelf.store(writer, second[40:])  # the shared pages are SGLang's already
    reader = Groups(16)
    got = shelf.prefix(reader, second)
    assert got == 32  # the end of the last chunk that both share
    shelf.store(reader, second[got:])
    assert shelf.prefix(Groups(16), second) == 70
    assert shelf.prefix(Groups(16), first) == 70


@pytest.mark.parametrize("most", [2, 4, 16])
@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_page_comes_from_another_ones_place(most: int, seed: int) -> None:
    """Engines with and without memory store and load prompts that fork; chunks get lost."""
    chance, shelf = random.Random(seed), ModelShelf(most)
    engines = [Groups(most) for _ in range(3)]
    for _ in range(30):
        words = [(chance.choice("abc"), chance.randint(1, 20)) for _ in range(chance.randint(1, 3))]
        pages, groups = prompt(*words), chance.choice(engines)
        got = shelf.prefix(groups, pages)
        begin = chance.choice([0, got, got])  # from the tree, or from where the hit ended
        shelf.store(groups, pages[begin:])
        if begin == got:
            assert shelf.prefix(Groups(most), pages) >= got
        if chance.random() < 0.3 and shelf.chunks:
            del shelf.chunks[chance.choice(list(shelf.chunks))]
