"""Count words and sentences of README and docs; long sentences are named.

    python scripts/prose.py [--long WORDS] [--mean WORDS] [--each] [PAGE ...]

Sentences are those of running text: code blocks, tables, headings, links' targets and generated
parts do not count. Words are those that a reader reads: generated parts, pages of fields, fenced
code and the bars of tables do not count. Exit status 1 if a sentence is longer than ``--long``
words or the mean is above ``--mean`` (0: no limit).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
# Tables of fields, as long as what they describe.
REFERENCE = {ROOT / "docs/reference/exit-codes-and-json.md"}
_GENERATED = re.compile(r"<!-- made by .*?<!-- end", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NO_SENTENCE = re.compile(r"^\s*(?:#|\||!\[|<!--|    )")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z0-9`\"*])|\n\n")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+", re.MULTILINE)


def pages(names: list[Path]) -> list[Path]:
    return names or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def written(text: str) -> str:
    """A page without its generated parts and fenced code."""
    return _FENCE.sub("", _GENERATED.sub("", text))


def words(text: str) -> int:
    """Of a page, those that a person wrote for a reader."""
    return sum(bool(re.search(r"\w", word)) for word in written(text).split())


def sentences(text: str) -> Iterator[str]:
    """Those of running text, each with its markup taken off."""
    lines = ["" if _NO_SENTENCE.match(line) else line for line in written(text).splitlines()]
    text = _ITEM.sub("\n\n", _LINK.sub(r"\1", "\n".join(lines)))
    for part in _END.split(text):
        found = part.split()
        if len(found) > 1:
            yield " ".join(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("pages", type=Path, nargs="*")
    parser.add_argument("--long", type=int, default=0, help="words; a longer sentence is refused")
    parser.add_argument("--mean", type=float, default=0, help="words; a larger mean is refused")
    parser.add_argument("--each", action="store_true", help="one line a page")
    args = parser.parse_args()
    total, lengths, is_bad = 0, [], False
    for page in pages(args.pages):
        text = page.read_text(encoding="utf-8")
        here = [(len(each.split()), each) for each in sentences(text)]
        total += 0 if page in REFERENCE else words(text)
        lengths += [length for length, _ in here]
        if args.each and here:
            average = mean(length for length, _ in here)
            print(f"{page.name}: {words(text)} words, {average:.1f} a sentence")
        for length, sentence in here:
            if args.long and length > args.long:
                is_bad = True
                print(f"{page.name}: {length} words: {sentence}")
    average = mean(lengths)
    print(f"prose: {total} words, {average:.1f} words a sentence, longest {max(lengths)}")
    return is_bad or bool(args.mean and average > args.mean)


if __name__ == "__main__":
    sys.exit(main())
