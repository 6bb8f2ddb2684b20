"""Texts that are nearly the same: MinHash over word 3-grams (Broder 1997) finds pairs, the 3-grams decide."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set

import numpy as np
import numpy.typing as npt

from distilledge.pipeline.data.duplicates import MOST_PAIRS, Pair, near

WORDS = 3
PERMUTATIONS = 128
MISSED = 0.01
"""Largest chance that a pair at the threshold is not found."""

Hashes = npt.NDArray[np.uint64]


def near_texts(texts: Sequence[str], parts: Sequence[str], jaccard: float, within: Set[str]) -> tuple[list[Pair], bool]:
    """Pairs of normalised texts whose sets of word 3-grams overlap by ``jaccard`` or more; equal texts are no pairs.

    They lie in two parts, or both in one of ``within``. True where ``MOST_PAIRS`` cut the list.
    Signatures are cut into bands; texts that share a band are compared (Leskovec et al. 2020, section 3.4).
    """
    first_of = {(text, part): i for i, (text, part) in reversed(list(enumerate(zip(texts, parts, strict=True))))}
    chosen = sorted(first_of.values())
    grams = [shingles(texts[i]) for i in chosen]
    own_parts = [parts[i] for i in chosen]
    pairs: dict[tuple[int, int], int] = {}
    for band in _bands(signatures(grams), jaccard):
        for a, b, _ in near(band.tolist(), own_parts, 0, within)[0]:
            pair = chosen[a], chosen[b]
            if pair in pairs or texts[pair[0]] == texts[pair[1]]:
                continue
            overlap = similarity(grams[a], grams[b])
            if overlap >= jaccard:
                pairs[pair] = round(100 * (1 - overlap))
    found = sorted((Pair(a, b, far) for (a, b), far in pairs.items()), key=lambda p: (p.distance, p.first, p.second))
    return found[:MOST_PAIRS], len(found) > MOST_PAIRS


def shingles(text: str) -> frozenset[int]:
    """Hashes of the runs of three words; of a shorter text, of all its words."""
    words = text.split(" ")
    runs = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        for run in runs
    )


def similarity(first: frozenset[int], second: frozenset[int]) -> float:
    """Jaccard index of two sets that are not both empty."""
    return len(first & second) / len(first | second)


def signatures(sets: Sequence[frozenset[int]]) -> Hashes:
    """(N, PERMUTATIONS): the smallest hash of each set under each permutation. No set is empty."""
    if not sets:
        return np.empty((0, PERMUTATIONS), np.uint64)
    values = np.concatenate([np.fromiter(items, np.uint64, len(items)) for items in sets])
    starts = np.cumsum([0, *(len(items) for items in sets[:-1])])
    rng = np.random.Generator(np.random.Philox(key=0))
    factors = rng.integers(0, 2**63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(1)
    terms = rng.integers(0, 2**64, PERMUTATIONS, np.uint64)
    others = np.roll(factors, 1)
    result = np.empty((len(sets), PERMUTATIONS), np.uint64)
    for k in range(PERMUTATIONS):
        mixed = values * factors[k : k + 1] + terms[k : k + 1]  # modulo 2^64
        mixed ^= mixed >> np.uint64(32)
        result[:, k] = np.minimum.reduceat(mixed * others[k : k + 1], starts)
    return result


def rows_per_band(jaccard: float) -> int:
    """As many as leave a pair at the threshold a chance of ``MISSED`` at most to share no band."""
    fitting = [r for r in range(1, PERMUTATIONS + 1) if (1 - jaccard**r) ** (PERMUTATIONS // r) <= MISSED]
    return max(fitting, default=1)


def _bands(signature: Hashes, jaccard: float) -> list[Hashes]:
    """(N,) for each band: a number for its content."""
    rows = rows_per_band(jaccard)
    return [
        np.unique(signature[:, start : start + rows], axis=0, return_inverse=True)[1].reshape(-1).astype(np.uint64)
        for start in range(0, PERMUTATIONS - rows + 1, rows)
    ]
