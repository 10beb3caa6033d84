"""Points on a line that lie as far apart as can be, and the order in which they matter."""

from collections.abc import Collection, Sequence


def spread(places: Sequence[float], count: int) -> list[int]:
    """The indices of ``count`` places, the first among them, that lie farthest apart.

    ``places`` ascend. Of all choices the smallest gap between neighbours is the largest possible,
    then the next smallest, and so on (leximin); among equals the earlier places win. With
    ``count`` at or above the number of places, all of them.
    """
    if count >= len(places):
        return list(range(len(places)))
    # best[i]: of the choices of so many places that end at i, the one whose sorted gaps are the
    # largest. To lengthen two choices by one gap does not change which is better, so the best of
    # each length and end is all that has to be remembered.
    best: dict[int, tuple[list[float], list[int]]] = {0: ([], [0])}
    for _ in range(count - 1):
        longer: dict[int, tuple[list[float], list[int]]] = {}
        for end in range(1, len(places)):
            for before, (gaps, chosen) in best.items():
                if before >= end:
                    continue
                found = sorted([*gaps, places[end] - places[before]]), [*chosen, end]
                known = longer.get(end)
                if known is None or (found[0], known[1]) > (known[0], found[1]):
                    longer[end] = found
        best = longer
    most = max(gaps for gaps, _ in best.values())
    return min(chosen for gaps, chosen in best.values() if gaps == most)


def importance(places: Sequence[float], first: Collection[int]) -> list[int]:
    """Every place's rank, 0 first: those of ``first`` before the others.

    Index 0 is the most important; then, again and again, the place that lies farthest from those
    already ranked, the earlier of two that are equally far.
    """
    ranks = dict.fromkeys(range(min(1, len(places))), 0)
    for among in (set(first), set(range(len(places)))):
        while left := sorted(among - ranks.keys()):
            next_ = max(left, key=lambda i: min(abs(places[i] - places[j]) for j in ranks))
            ranks[next_] = len(ranks)
    return [ranks[i] for i in range(len(places))]
