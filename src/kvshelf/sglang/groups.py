"""Several pages in one chunk file, though SGLang asks for pages.

A chunk has up to ``pages_per_chunk`` consecutive pages of one prompt and the name of the last one.
That page's hash commits to every token before it, so the name says what is in the file. A page's
place in the chunk counts from the end: the last page is always the last block. Neither needs to
know where in its prompt a page lies, which SGLang does not say.

A lookup asks for every page's name. A page that has none is in the next chunk that was found, if
that is near enough to reach back to it. This is a guess: the chunk may begin later. Then the load
finds that the file lacks the block, and SGLang computes the page. No guess reads another page's
bytes.

Pure: no I/O, no SGLang.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

# Pages whose chunk is remembered from a lookup to the load or store that follows; 300 bytes each.
PAGES_MAX = 262_144


class Part(NamedTuple):
    """Consecutive pages of one call that lie in one chunk.

    Attributes:
        name: the chunk's: the hash of its last page.
        begin, end: the pages, as positions in the call.
        first_block: of the first of them, in the chunk.
    """

    name: str
    begin: int
    end: int
    first_block: int


class Groups:
    """Which pages lie in which chunk. Threads: any.

    Args:
        pages_per_chunk: the most that one chunk has; with 1 every page is a chunk.
    """

    def __init__(self, pages_per_chunk: int) -> None:
        self.most = pages_per_chunk
        self._chunk_of: OrderedDict[str, tuple[str, int]] = OrderedDict()  # name, block
        self._lock = threading.Lock()

    def found(self, pages: Sequence[str], is_there: Sequence[bool]) -> list[bool]:
        """Which pages can be loaded, of a prompt's consecutive ones.

        Args:
            is_there: whether the chunk with the page's name exists.
        """
        if self.most == 1:
            return list(is_there)
        answers = [False] * len(pages)
        nearest = -1  # the next chunk at or after a page
        with self._lock:
            for i in reversed(range(len(pages))):
                nearest = i if is_there[i] else nearest
                answers[i] = 0 <= nearest < i + self.most
                if answers[i]:
                    self._keep(pages[i], pages[nearest], self.most - 1 - (nearest - i))
                else:
                    self._chunk_of.pop(pages[i], None)
        return answers

    def to_load(self, pages: Sequence[str]) -> list[Part]:
        """Where these pages are, by the last lookup; of others a chunk of their own is assumed."""
        with self._lock:
            places = [self._chunk_of.get(page, (page, self.most - 1)) for page in pages]
        parts: list[Part] = []
        for i, (name, block) in enumerate(places):
            last = parts[-1] if parts else None
            if last and last.name == name and last.first_block + i - last.begin == block:
                parts[-1] = last._replace(end=i + 1)
            else:
                parts.append(Part(name, i, i + 1, block))
        return parts

    def to_store(self, pages: Sequence[str]) -> list[Part]:
        """Chunks for these consecutive pages: those that they are known to lie in, or new ones."""
        parts: list[Part] = []
        begin = 0
        for part in self.to_load(pages):
            if part.end - part.begin > 1 or self._knows(pages[part.begin]):
                parts += self._new(pages, begin, part.begin)
                if pages[part.end - 1] == part.name:
                    parts.append(part)
                else:  # the chunk ends with a page that is not offered
                    parts += self._new(pages, part.begin, part.end)
                begin = part.end
        return parts + self._new(pages, begin, len(pages))

    def _knows(self, page: str) -> bool:
        with self._lock:
            return page in self._chunk_of

    def _new(self, pages: Sequence[str], begin: int, end: int) -> list[Part]:
        parts = []
        for first in range(begin, end, self.most):
            after = min(first + self.most, end)
            parts.append(Part(pages[after - 1], first, after, self.most - (after - first)))
        return parts

    def _keep(self, page: str, name: str, block: int) -> None:
        self._chunk_of[page] = name, block
        self._chunk_of.move_to_end(page)
        if len(self._chunk_of) > PAGES_MAX:
            self._chunk_of.popitem(last=False)
