"""What comparing tables costs, in one process and without a network: memory, time, bytes and turns.

    python benchmarks/table_bench.py [--rows 50000]

Two tables of rows as peers write them (`lattica.testing.authority` signs, which is not counted), in batches as a
session would carry them. A turn is one direction of messages, half a round trip.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

from lattica.crdt.ranges import Ranges
from lattica.mesh.table.journal import Journal
from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.table.reconcile import Reconciler, decode, encode
from lattica.mesh.table.rows import Content, Row, read_row, write_row
from lattica.testing.authority import FakeKey

MESH = bytes(32)
WRITERS = 500
BODY = b"b" * 160
EXPIRES = 2_000_000_000


def row(number: int, version: int, keys: list[FakeKey]) -> Row:
    key = keys[number % len(keys)]
    name = key.peer + number.to_bytes(4, "big")
    content = Content(SERVICE.number, name, key.peer, 7 << 20, version, version << 16, EXPIRES, False, BODY)
    return write_row(content, key.sign, MESH)


class Table:
    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: dict[int, Row] = {}
        self.ranges = Ranges()
        self.reconciler = Reconciler(self.ranges, self.rows.get)
        for each in rows:
            self.merge(each)

    def merge(self, row: Row) -> None:
        held = self.rows.get(row.place)
        if held is not None:
            if held.order >= row.order:
                return
            self.ranges.remove(row.place, held.hash)
        self.ranges.add(row.place, row.hash)
        self.rows[row.place] = row


def compare(name: str, one: Table, other: Table) -> None:
    """One round, begun by the first, and what it cost."""
    tables, bytes_, rows, row_bytes, turns = (one, other), 0, 0, 0, 0
    began = time.perf_counter()
    batch: list[tuple[int, list[bytes], list[bytes]]] = [(1, [], [encode(one.reconciler.begin())])]
    while batch:
        turns += 1
        answers: list[tuple[int, list[bytes], list[bytes]]] = []
        for to, sent, messages in batch:
            for data in sent:
                tables[to].merge(read_row(data))
            rows, row_bytes = rows + len(sent), row_bytes + sum(map(len, sent))
            bytes_ += sum(map(len, messages))
            for message in messages:
                said, places = tables[to].reconciler.answer(decode(message))
                if said or places:
                    theirs = [tables[to].rows[place].data for place in places]
                    answers.append((1 - to, theirs, [encode(each) for each in said]))
        batch = answers
    took_s = time.perf_counter() - began
    assert one.ranges.root() == other.ranges.root()
    print(
        f"{name:>28}  {took_s * 1e3:9.1f} ms  {turns:5} turns  {bytes_:9,} bytes compared  "
        f"{rows:7,} rows of {row_bytes:11,} bytes"
    )


def memory(rows: list[Row]) -> None:
    gc.collect()
    tracemalloc.start()
    ranges = Ranges()
    for each in rows:
        ranges.add(each.place, each.hash)
    gc.collect()
    sums = tracemalloc.get_traced_memory()[0]
    copies = [read_row(each.data) for each in rows[:1000]]
    per_row = (tracemalloc.get_traced_memory()[0] - sums) / len(copies)
    tracemalloc.stop()
    print(f"{'memory of sums':>28}  {sums / len(rows):9.1f} bytes per row, beside {per_row:.0f} of the row itself")
    began = time.perf_counter()
    Table(rows)
    print(f"{'filling a table':>28}  {(time.perf_counter() - began) / len(rows) * 1e6:9.2f} µs per row")


def disk(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory(prefix="table-") as folder:
        journal = Journal(folder, MESH)
        began = time.perf_counter()
        journal.compact(rows)
        print(f"{'writing a snapshot':>28}  {(time.perf_counter() - began) * 1e3:9.1f} ms")
        began = time.perf_counter()
        for at in range(100):
            journal.append(rows[at : at + 1], sync=True)
        print(f"{'appending a row, durably':>28}  {(time.perf_counter() - began) * 10:9.2f} ms")
        began = time.perf_counter()
        for at in range(0, len(rows), 100):
            journal.append(rows[at : at + 100], sync=False)
        print(f"{'appending, not durably':>28}  {(time.perf_counter() - began) / len(rows) * 1e6:9.2f} µs per row")
        began = time.perf_counter()
        journal.close()
        journal = Journal(folder, MESH)
        count = sum(1 for _ in journal.rows())
        print(f"{'opening and reading':>28}  {(time.perf_counter() - began) * 1e3:9.1f} ms for {count:,} rows")
        journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    count = parser.parse_args().rows
    keys = [FakeKey(str(number)) for number in range(WRITERS)]
    rows = [row(number, 1, keys) for number in range(count)]
    print(f"{count:,} rows of {len(rows[0].data)} bytes")
    memory(rows)
    disk(rows)
    compare("nothing differs", Table(rows), Table(rows))
    for differing in (1, 100, 10_000):
        later = (row(number, 2, keys) for number in range(min(differing, count)))
        newer = Table(rows)
        for each in later:
            newer.merge(each)
        compare(f"{differing:,} rows are newer there", Table(rows), newer)
    compare("a newcomer, who begins", Table(), Table(rows))
    compare("a newcomer, who is told", Table(rows), Table())


if __name__ == "__main__":
    main()
