"""Count words and sentences of README and docs; long sentences are named.

    python scripts/prose.py [--long WORDS] [PAGE ...]

Code blocks, tables, headings, links' targets and generated parts do not count. Exit status 1 if a
sentence is longer than ``--long`` words (0: none is refused).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
_GENERATED = re.compile(r"<!-- made by .*?<!-- end", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NO_SENTENCE = re.compile(r"^\s*(?:#|\||!\[|<!--|    )")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z0-9`\"*])|\n\n")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+", re.MULTILINE)


def pages(names: list[Path]) -> list[Path]:
    return names or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def sentences(text: str) -> Iterator[str]:
    """Those of running text, each with its markup taken off."""
    text = _FENCE.sub("", _GENERATED.sub("", text))
    lines = ["" if _NO_SENTENCE.match(line) else line for line in text.splitlines()]
    text = _ITEM.sub("\n\n", _LINK.sub(r"\1", "\n".join(lines)))
    for part in _END.split(text):
        words = part.split()
        if len(words) > 1:
            yield " ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("pages", type=Path, nargs="*")
    parser.add_argument("--long", type=int, default=0, help="words; a longer sentence is refused")
    parser.add_argument("--each", action="store_true", help="one line a page")
    args = parser.parse_args()
    words, lengths, is_bad = 0, [], False
    for page in pages(args.pages):
        text = page.read_text(encoding="utf-8")
        counted = len(_GENERATED.sub("", text).split())
        here = [(len(each.split()), each) for each in sentences(text)]
        words += counted
        lengths += [length for length, _ in here]
        if args.each and here:
            average = mean(length for length, _ in here)
            print(f"{page.name}: {counted} words, {average:.1f} a sentence")
        for length, sentence in here:
            if args.long and length > args.long:
                is_bad = True
                print(f"{page.name}: {length} words: {sentence}")
    print(f"prose: {words} words, {mean(lengths):.1f} words a sentence, longest {max(lengths)}")
    return is_bad


if __name__ == "__main__":
    sys.exit(main())
