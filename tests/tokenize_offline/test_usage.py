import math
from collections import Counter

import pytest
import torch

from tokenize_offline.usage import perplexity, shares, tally

GRIDS = ((1, 1), (2, 3), (4, 6))


def brute_force(codes: list[int], num_codes: int) -> tuple[float, float]:
    counts = Counter(codes)
    frequencies = [count / len(codes) for count in counts.values()]
    return len(counts) / num_codes, math.exp(-sum(f * math.log(f) for f in frequencies))


def test_counts_and_shares_are_those_of_counting_one_by_one() -> None:
    torch.manual_seed(0)
    batches = [torch.randint(0, 9, (3, 31)), torch.randint(0, 9, (2, 31))]
    counts = torch.zeros(5, 9, dtype=torch.long)  # two scales more than the codes have
    for codes in batches:
        tally(counts, codes, GRIDS)
    usage, every, start = shares(counts), torch.cat(batches), 0
    for scale, (height, width) in enumerate(GRIDS):
        part = every[:, start : start + height * width].flatten().tolist()
        assert counts[scale].tolist() == [part.count(code) for code in range(9)]
        share, perplexity = brute_force(part, 9)
        assert usage.share[scale] == pytest.approx(share)
        assert usage.perplexity[scale] == pytest.approx(perplexity)
        start += height * width
    assert (usage.share_all, usage.perplexity_all) == pytest.approx(
        brute_force(every.flatten().tolist(), 9)
    )
    assert usage.share[3:] == usage.perplexity[3:] == (None, None)


def test_dropped_scales_count_nowhere() -> None:
    codes = torch.full((2, 31), 4)
    codes[:, 1:7] = -1
    counts = torch.zeros(3, 9, dtype=torch.long)
    tally(counts, codes, GRIDS)
    assert counts.sum(1).tolist() == [2, 0, 48]
    assert shares(counts) == ((1 / 9, None, 1 / 9), (1.0, None, 1.0), 1 / 9, 1.0)


def test_no_codes_at_all() -> None:
    assert shares(torch.zeros(1, 9, dtype=torch.long)) == ((None,), (None,), None, None)


def test_perplexity_is_the_number_of_equally_frequent_codes() -> None:
    counts = torch.tensor([[0, 7, 7, 0, 7], [0, 5, 0, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(perplexity(counts), torch.tensor([3.0, 1, 1], dtype=torch.double))
