"""Count the words of texts, map and reduce: the most frequent ones, or those that begin with some letters.

    python examples/word_count.py                         lattica's own documentation
    python examples/word_count.py ~/books/*.txt --top 20

Each mapper counts a piece of the text, and deals its counts out by word to as many parts as there are reducers
(`num_returns`), so that a reducer gets its part of every mapper and nothing else. Counts never pass through this
program until they are reduced. Based on: Dean and Ghemawat, "MapReduce" (OSDI 2004).
"""

from __future__ import annotations

import argparse
import heapq
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lattica

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
PIECE_BYTES = 64 << 10
DOCS = Path(__file__).parents[1] / "docs"


@lattica.remote
def count_words(text: str, parts: int) -> list[Counter[str]]:
    """The counts of a piece, dealt out by word: the same word of any piece goes to the same part."""
    dealt: list[Counter[str]] = [Counter() for _ in range(parts)]
    for word, count in Counter(WORD.findall(text.lower())).items():
        dealt[zlib.crc32(word.encode()) % parts][word] = count
    return dealt


@lattica.remote
def add_up(*counts: Counter[str]) -> Counter[str]:
    """All counts of one part."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def pieces(paths: list[Path]) -> Iterator[str]:
    """The texts in pieces of some 64 KiB, cut at the ends of lines."""
    for path in paths:
        lines, size = [], 0
        with path.open(errors="replace") as file:
            for line in file:
                lines.append(line)
                size += len(line)
                if size >= PIECE_BYTES:
                    yield "".join(lines)
                    lines, size = [], 0
        yield "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the words of texts.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts (default: lattica's documentation)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many words to show (default 10)")
    parser.add_argument("--parts", type=int, default=4, metavar="N", help="reducers (default 4)")
    options = parser.parse_args()
    files = options.files or sorted(DOCS.rglob("*.md"))
    if missing := [str(path) for path in files if not path.is_file()]:
        sys.exit(f"no such file: {', '.join(missing)}")
    with lattica.init():
        mapper = count_words.options(num_returns=options.parts)
        mapped = [mapper.remote(piece, options.parts) for piece in pieces(files)]
        if options.parts == 1:
            mapped = [[ref] for ref in mapped]
        reduced = [add_up.remote(*(refs[part] for refs in mapped)) for part in range(options.parts)]
        counts = lattica.get(reduced)
    words = sum(sum(part.values()) for part in counts)
    print(f"{words:,} words, {sum(map(len, counts)):,} different ones, in {len(files)} files and {len(mapped)} pieces")
    everything = (entry for part in counts for entry in part.items())
    for word, count in heapq.nlargest(options.top, everything, key=lambda entry: (entry[1], entry[0])):
        print(f"{count:8,}  {word}")


if __name__ == "__main__":
    main()
