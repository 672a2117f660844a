"""Which images show the same picture, and which of them is kept.

Images are taken from the best to the worst. Each one not yet represented represents itself and all
worse ones that are like it. So every image is like the one that is kept for it, never only like one
in between.

Alike means: the hashes are within `near_duplicate_distance` bits, the thumbnails differ nowhere by
more than `near_duplicate_difference`, and the shapes agree.

Candidates come from an index of the distinct hashes by disjoint pieces of their bits. Two hashes at
distance d, cut into m pieces, differ in some piece i by at most t[i] bits, if the t[i] add up to
d - m + 1 (Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with Multi-Index
Hashing", 2014): so looking up all keys within t[i] bits of each piece finds every pair. Long pieces
want many look-ups, short ones yield many false candidates; how many there are is chosen by the
number of hashes. The search is exact; ten times as many pictures take about 25 times as long.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from labeling_pipeline.images.hashing import HASH_BITS, hamming
from labeling_pipeline.images.quality import CleaningRules

# Two pictures of one scene may differ this much in width / height, from rounding when resized.
_ASPECT_TOLERANCE = 0.05

_QUERIES = 4096
"""Images that are looked up together."""
_CANDIDATES = 4 << 20
"""Candidates that are compared together, unless one image alone has more."""
_COMPARED = 8 << 20
"""Pairs that are compared by rows before what they settle is taken out."""
_CACHED = 1 << 18
"""Pairs of which all that is compared fits into a processor's cache."""
_CROWD = 256
"""So many pictures of one hash are compared by rows."""
_DENSE = 16
"""Candidates cost so many times as much as comparisons by rows."""

# What a look-up, a candidate of it and a plain comparison cost, relative to each other.
_LOOK_UP, _CANDIDATE, _COMPARISON = 12.0, 10.0, 4.0


def represent(
    hashes: np.ndarray, thumbnails: np.ndarray, aspects: np.ndarray, rules: CleaningRules
) -> np.ndarray:
    """For each of n images, sorted from the best to the worst, which one stands for it.

    Args:
        hashes: (n,) uint64.
        thumbnails: (n, THUMBNAIL_SIZE) uint8.
        aspects: (n,) float, width / height.
        rules: the thresholds.

    Returns:
        (n,) int64 positions, of the image itself or of a better one.
    """
    kept_by = np.full(len(hashes), -1)
    standing = np.arange(len(hashes))  # not represented yet
    while len(standing):
        pictures = _Pictures(standing, hashes, thumbnails, np.log(aspects), rules)
        # What is settled stays in the index until it is most of it.
        enough = len(standing) // 2
        while len(standing) > enough:
            batch = standing[:_QUERIES]
            batch, left, right = pictures.alike(batch, kept_by)
            _settle(batch, left, right, kept_by)
            standing = standing[kept_by[standing] < 0]
    return kept_by


def _settle(batch: np.ndarray, left: np.ndarray, right: np.ndarray, kept_by: np.ndarray) -> None:
    """Let each of a batch represent itself and those like it, from the best to the worst.

    left, right: (k,) positions of the batch, ascending, and of worse ones that are like them.
    """
    edges = [*np.flatnonzero(np.diff(left, prepend=-1)), len(left)]
    for begin, end in pairwise(edges):
        query, others = left[begin], right[begin:end]
        if kept_by[query] < 0:
            kept_by[query] = query
            kept_by[others[kept_by[others] < 0]] = query
    alone = batch[kept_by[batch] < 0]
    kept_by[alone] = alone


class _Pictures:
    """Pictures that are not represented yet, by their hash."""

    def __init__(
        self,
        standing: np.ndarray,
        hashes: np.ndarray,
        thumbnails: np.ndarray,
        shapes: np.ndarray,
        rules: CleaningRules,
    ) -> None:
        self._standing = standing
        self._hashes, self._thumbnails, self._shapes = hashes, thumbnails, shapes
        self._distance = rules.near_duplicate_distance
        self._difference = rules.near_duplicate_difference
        distinct, place, self._sizes = np.unique(
            hashes[standing], return_inverse=True, return_counts=True
        )
        self._index = _HashIndex(distinct, self._distance)
        self._members = standing[np.argsort(place, kind="stable")]
        self._begins = self._sizes.cumsum() - self._sizes
        # Where pictures differ most, few bytes tell most of them apart.
        sample = thumbnails[standing[:: max(1, len(standing) // 4096)]]
        self._telling = np.argsort(-sample.var(axis=0))[:8]

    def alike(
        self, batch: np.ndarray, kept_by: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of alike pictures, of as many of a batch as can be compared together.

        Returns:
            The first of the batch; their positions, ascending, and those of the ones behind them
            that are like them and are not represented yet.
        """
        looked_up = self._index.look_up(self._hashes[batch])
        if looked_up.candidates.mean() > len(self._standing) / _DENSE:
            # Hashes that crowd together are compared faster in rows than one by one.
            batch = batch[: max(16, _COMPARED // len(self._standing))]
            others = self._standing[kept_by[self._standing] < 0]
            left, right = self._by_rows(batch, others[others > batch[0]])
        else:
            batch = batch[: _affordable(looked_up.candidates)]
            row, place = self._index.near(self._hashes[batch], looked_up)
            sizes = self._sizes[place]
            batch = batch[: _affordable(np.bincount(row, sizes, len(batch)))]
            row, place, sizes = (side[row < len(batch)] for side in (row, place, sizes))
            few = sizes <= _CROWD
            left = np.repeat(batch[row[few]], sizes[few])
            right = self._members[_ranges(self._begins[place[few]], sizes[few])]
            pairs = [(left, right)]
            for crowd in np.unique(place[~few]):
                begin = self._begins[crowd]
                members = self._members[begin : begin + self._sizes[crowd]]
                members = members[kept_by[members] < 0]
                pairs.append(self._by_rows(batch[row[place == crowd]], members))
            left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        keep = (right > left) & (kept_by[right] < 0)
        left, right = left[keep], right[keep]
        keep = np.abs(self._shapes[left] - self._shapes[right]) <= _ASPECT_TOLERANCE
        left, right = left[keep], right[keep]
        keep = np.ones(len(left), bool)
        for start in range(0, len(left), _QUERIES):
            part = slice(start, start + _QUERIES)
            one, other = self._thumbnails[left[part]], self._thumbnails[right[part]]
            farthest = (np.maximum(one, other) - np.minimum(one, other)).max(axis=1)
            keep[part] = farthest <= self._difference
        left, right = left[keep], right[keep]
        order = np.argsort(left, kind="stable")
        return batch, left[order], right[order]

    def _by_rows(self, batch: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of two sets that have near hashes and look alike where pictures differ most."""
        found: list[tuple[np.ndarray, np.ndarray]] = [(batch[:0], others[:0])]
        columns = [np.ascontiguousarray(self._thumbnails[others, c]) for c in self._telling]
        rows = max(1, _CACHED // max(1, len(others)))
        for start in range(0, len(batch), rows):
            part = batch[start : start + rows]
            near = hamming(self._hashes[part, None], self._hashes[others]) <= self._distance
            for column, values in zip(self._telling, columns, strict=True):
                if np.count_nonzero(near) * _DENSE < near.size:
                    break
                # Bytes wrap round: two steps in place of four, that let a few too many pass.
                lowest = self._thumbnails[part, column, None] - np.uint8(self._difference)
                near &= values - lowest <= min(2 * self._difference, 255)
            left, right = np.divmod(np.flatnonzero(near), len(others))
            found.append((part[left], others[right]))
        left, right = (np.concatenate(side) for side in zip(*found, strict=True))
        return left, right


@dataclass(frozen=True)
class _LookedUp:
    """Where hashes lie that share a key with a query."""

    runs: list[tuple[np.ndarray, np.ndarray]]  # of each piece: begin and length (queries, keys)
    candidates: np.ndarray  # (queries,) how many there are, some more than once


class _HashIndex:
    """Distinct hashes, to be found by ones within a distance of them."""

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        self._hashes = hashes
        self._distance = distance
        self._pieces = [_Piece(hashes, *piece) for piece in _cheapest(len(hashes), distance)]

    def look_up(self, queries: np.ndarray) -> _LookedUp:
        """Where the candidates of (k,) hashes lie."""
        runs = [piece.look_up(queries) for piece in self._pieces]
        if not runs:
            return _LookedUp(runs, np.full(len(queries), len(self._hashes)))
        return _LookedUp(runs, np.sum([lengths.sum(axis=1) for _, lengths in runs], axis=0))

    def near(self, queries: np.ndarray, looked_up: _LookedUp) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a query and a hash within the distance of it, by their positions, each once.

        queries: the first of those that were looked up.
        """
        if not self._pieces:
            distances = hamming(queries[:, None], self._hashes)
            query, found = np.nonzero(distances <= self._distance)
            return query, found
        pairs = []
        for number, (piece, runs) in enumerate(zip(self._pieces, looked_up.runs, strict=True)):
            begin, lengths = (side[: len(queries)] for side in runs)
            query = np.repeat(np.arange(len(queries)), lengths.sum(axis=1))
            found = piece.grouped[_ranges(begin.ravel(), lengths.ravel())]
            differing = queries[query] ^ self._hashes[found]
            near = np.bitwise_count(differing) <= self._distance
            query, found, differing = query[near], found[near], differing[near]
            for earlier in self._pieces[:number]:
                new = ~earlier.finds(differing)
                query, found, differing = query[new], found[new], differing[new]
            pairs.append((query, found))
        query, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return query, found


class _Piece:
    """Some bits of all hashes, to be found by keys within a number of bits of them."""

    def __init__(self, hashes: np.ndarray, low: int, width: int, radius: int) -> None:
        self._low, self._width, self._radius = np.uint64(low), width, radius
        keys = self._keys(hashes)
        self.grouped = np.argsort(keys, kind="stable").astype(np.int32)
        self._lengths = np.bincount(keys, minlength=1 << width).astype(np.int32)
        self._begins = (self._lengths.cumsum() - self._lengths).astype(np.int32)
        flips = [bits for count in range(radius + 1) for bits in combinations(range(width), count)]
        self._masks = np.array([sum(1 << bit for bit in bits) for bits in flips], dtype=np.int64)

    def look_up(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begin and length (queries, keys) of the runs of ``grouped`` that have the keys."""
        keys = self._keys(queries)[:, None] ^ self._masks
        return self._begins.take(keys), self._lengths.take(keys)

    def finds(self, differing: np.ndarray) -> np.ndarray:
        """Whether looking up finds hashes (k,) that differ from the query in these bits."""
        return np.bitwise_count(self._keys(differing)) <= self._radius

    def _keys(self, hashes: np.ndarray) -> np.ndarray:
        bits = np.uint64((1 << self._width) - 1)
        return ((hashes >> self._low) & bits).astype(np.int64)


def _cheapest(count: int, distance: int) -> list[tuple[int, int, int]]:
    """Pieces (lowest bit, width, bits that may differ); none where comparing all costs least."""
    best, cost = [], _COMPARISON * count
    for pieces in range(1, distance + 2):
        plan = list(_pieces(pieces, distance))
        keys = [sum(math.comb(width, k) for k in range(most + 1)) for _, width, most in plan]
        here = sum(
            many * (_LOOK_UP + _CANDIDATE * count / 2**width)
            for many, (_, width, _) in zip(keys, plan, strict=True)
        )
        if here < cost:
            best, cost = plan, here
    return best


def _pieces(pieces: int, distance: int) -> Iterator[tuple[int, int, int]]:
    edges = [HASH_BITS * number // pieces for number in range(pieces + 1)]
    most, left_over = divmod(distance - pieces + 1, pieces)
    for number in range(pieces):
        low, width = edges[number], edges[number + 1] - edges[number]
        # Fewer bits than a piece has find what is near as well, in a table of a sensible size.
        yield low, min(width, 22), most + (number < left_over)


def _affordable(candidates: np.ndarray) -> int:
    """How many queries, from the first and at least one, have no more candidates than we take."""
    return max(1, int(np.searchsorted(candidates.cumsum(), _CANDIDATES, side="right")))


def _ranges(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers begin[i], begin[i] + 1, ..., counts[i] of them, for all i, end to end."""
    offsets = np.repeat(begin - np.concatenate([[0], counts.cumsum()[:-1]]), counts)
    return offsets + np.arange(len(offsets))
