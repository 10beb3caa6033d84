"""How much a text repeats itself: the measures of Gopher's filters, each a share of 0..1.

J. Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(arXiv:2112.11446), table A1, with its limits in brackets. Characters are those of words, so that
white space counts for nothing, and none is counted twice where occurrences overlap.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

TOP = (2, 3, 4)
REPEATED = (5, 10)


def line_shares(lines: Sequence[str]) -> tuple[float, float]:
    """Shares of the lines [0.30], and of their characters [0.20], that stood there before."""
    distinct = set(lines)
    characters = sum(map(len, lines))
    if not characters:
        return 0.0, 0.0
    return 1 - len(distinct) / len(lines), 1 - sum(map(len, distinct)) / characters


def ngram_shares(words: Sequence[str]) -> dict[str, float]:
    """Shares of the characters inside repeated runs of n words; 0 where no run occurs twice.

    ``top_<n>gram_share``: inside the most frequent run of 2, 3, 4 words [0.20, 0.18, 0.16].
    ``repeated_<n>gram_share``: inside any run of 5, 10 words that occurs twice [0.15, 0.10].
    """
    names = [f"top_{n}gram_share" for n in TOP] + [f"repeated_{n}gram_share" for n in REPEATED]
    shares = dict.fromkeys(names, 0.0)
    numbers: dict[str, int] = {}
    runs = {1: np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)}
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    # Runs of n words are pairs of shorter runs, so that equal numbers are equal runs for certain.
    for n, left, right in ((2, 1, 1), (3, 2, 1), (4, 2, 2), (5, 4, 1), (10, 5, 5)):
        if n > len(words):
            break
        runs[n] = _pairs(runs[left], runs[right], left, len(words) - n + 1)
        repeated = np.bincount(runs[n])[runs[n]] > 1
        if not repeated.any():
            break  # nor does any longer run
        if n in TOP:
            shares[f"top_{n}gram_share"] = _covered(
                runs[n] == _top(runs[n], lengths, n), lengths, n
            )
        else:
            shares[f"repeated_{n}gram_share"] = _covered(repeated, lengths, n)
    return shares


def _pairs(left: Int64, right: Int64, step: int, count: int) -> Int64:
    """Numbers of the runs made of the run at i and the run ``step`` words later."""
    pairs = left[:count] * (right.max() + 1) + right[step : step + count]
    return np.unique(pairs, return_inverse=True)[1].astype(np.int64, copy=False)


def _top(runs: Int64, lengths: Int64, n: int) -> int:
    """The most frequent run; of several the one with most characters."""
    counts = np.bincount(runs)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    characters = np.bincount(runs, weights=ends[n:] - ends[:-n])
    return int(np.argmax(np.where(counts == counts.max(), characters, -1)))


def _covered(starts: NDArray[np.bool_], lengths: Int64, n: int) -> float:
    """Share of the characters in words that lie in a run of n words from one of the starts."""
    steps = np.zeros(len(lengths) + 1, np.int64)
    steps[: len(starts)] += starts
    steps[n : n + len(starts)] -= starts
    inside = np.cumsum(steps[:-1]) > 0
    return float(lengths[inside].sum() / lengths.sum())
