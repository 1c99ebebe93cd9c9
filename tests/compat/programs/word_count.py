"""Streaming MapReduce: mappers read articles one after the other and split the words among reducers, who ask them for
their part of the next article."""

from collections import Counter

import ray

TEXTS = {
    "sea": ["the sea is grey and the wind is cold", "a ship comes in", "the ship is old and the sea is wide"],
    "town": ["the town is small", "the bell of the town rings and rings", "a dog runs in the street of the town"],
    "hill": ["the hill is green", "sheep go up and sheep go down", "the wind is on the hill and the sheep are cold"],
}


class Stream:
    """Articles without end."""

    def __init__(self, lines):
        self.lines, self.at = lines, 0

    def next(self):
        self.at += 1
        return self.lines[(self.at - 1) % len(self.lines)]


@ray.remote
class Mapper:
    def __init__(self, stream):
        self.stream, self.read, self.counts = stream, -1, []

    def _read(self):
        self.read += 1
        self.counts.append(Counter(self.stream.next().split()))

    def part(self, article, letters):
        """The words of one article that begin with one of these letters."""
        while self.read < article:
            self._read()
        found = self.counts[article]
        return [(word, times) for word, times in found.items() if letters[0] <= word[0] <= letters[1]]


@ray.remote
class Reducer:
    def __init__(self, letters, *mappers):
        self.letters, self.mappers = letters, mappers

    def next(self, article):
        total = Counter()
        for part in ray.get([mapper.part.remote(article, self.letters) for mapper in self.mappers]):
            for word, times in part:
                total[word] += times
        return total


if __name__ == "__main__":
    ray.init(num_cpus=4)
    mappers = [Mapper.options(num_cpus=0.5).remote(Stream(lines)) for lines in TEXTS.values()]
    reducers = [Reducer.options(num_cpus=0.5).remote(letters, *mappers) for letters in ("ag", "hr", "sz")]
    totals = Counter()
    for article in range(6):
        for counted in ray.get([reducer.next.remote(article) for reducer in reducers]):
            totals.update(counted)
        print("article", article, sum(totals.values()), "words")
    for word, times in sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))[:8]:
        print(f"{word:6} {times}")
