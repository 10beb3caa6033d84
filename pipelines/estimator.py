"""Totals of a whole source from a sample of it, with their errors.

Drawn rows fall into groups: whole files where files were drawn, else random groups of rows. A total
is the ratio estimator over groups, X * sum(y) / sum(x), where x is a size that is known for the
whole source (rows, or bytes of files) and sums to X there. Its variance is the delete-one-group
jackknife (W. Cochran, Sampling Techniques, 3rd ed., 6.17; K. Wolter, Introduction to Variance
Estimation, 4.2), so that rows of one file, which are alike, do not count as if they were many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Total:
    """An estimated total: its value, the variance of it, and the degrees of freedom of that."""

    value: float
    variance: float = 0.0
    freedom: int = 0

    @property
    def error(self) -> float:
        """Half of the 95% interval (Student's t); infinite where one group cannot tell it."""
        if self.variance == 0:
            return 0.0
        return student_t(self.freedom) * math.sqrt(self.variance)

    @property
    def relative_variance(self) -> float:
        return self.variance / self.value**2 if self.value else 0.0

    def __add__(self, other: "Total") -> "Total":
        """The sum of totals of independent samples."""
        freedom = self.freedom + other.freedom
        return Total(self.value + other.value, self.variance + other.variance, freedom)

    def times(self, factor: float) -> "Total":
        return Total(self.value * factor, self.variance * factor**2, self.freedom)

    def times_rate(self, rate: "Total") -> "Total":
        """The product with an independent estimate, to the first order."""
        value = self.value * rate.value
        if not value:
            return Total(0.0)
        variance = value**2 * (self.relative_variance + rate.relative_variance)
        few = [one.freedom for one in (self, rate) if one.variance > 0]
        return Total(value, variance, min(few, default=0))


def ratio_total(y: Values, x: Values, whole: float, share: float = 0.0) -> Total:
    """Total of y over the source, from y and x of the drawn groups; x sums to ``whole`` there.

    ``share`` of the source was drawn: all of it leaves no error.
    """
    return chained_total([(y, x)], whole, share)


def chained_total(
    ratios: Sequence[tuple[Values, Values]], whole: float, share: float = 0.0
) -> Total:
    """``whole`` times a chain of ratios of sums over the same groups.

    Such as bytes of all files, times rows per byte, times kept rows per row that was looked at.
    """
    chain = [(np.asarray(y, np.float64), np.asarray(x, np.float64)) for y, x in ratios]
    if not all(x.sum() for _, x in chain):
        return Total(0.0)
    value = whole * math.prod(float(y.sum() / x.sum()) for y, x in chain)
    left = max(0.0, 1.0 - share)
    if not left:
        return Total(value)
    used = np.all([x.sum() - x > 0 for _, x in chain], axis=0) & (chain[0][1] > 0)
    count = int(used.sum())
    if count < 2:
        return Total(value, math.inf, 0)
    without = np.full(count, whole)
    for y, x in chain:
        without *= (y.sum() - y[used]) / (x.sum() - x[used])
    spread = float(np.square(without - value).sum())
    return Total(value, left * (count - 1) / count * spread, count - 1)


def student_t(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t (Cornish-Fisher expansion; 2% off at 2, then less).

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if freedom < 1:
        return math.inf
    if freedom == 1:
        return 12.706
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
