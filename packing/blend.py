"""Several components in one stream of documents, in shares of TOKENS that hold at every point.

Each component is a stream in its own seeded order. A document's virtual time is the tokens of its
component so far (to its middle) over the component's share; streams are merged by it. So after any
document every component is within one document per component of its quota. Nothing is drawn.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Component:
    """A part of a mixture: its share of all tokens, relative to the other shares, and how often it
    may be gone through to reach that share."""

    name: str
    share: float
    max_epochs: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise ValueError(f"{self.name}: share is {self.share}: use a positive number")
        if self.max_epochs < 1:
            raise ValueError(f"{self.name}: max_epochs is {self.max_epochs}: use 1 or more")


def quotas(
    components: Sequence[Component], tokens: Sequence[int], num_tokens: int | None
) -> list[int]:
    """The tokens to take of each component, of which one epoch holds ``tokens``; rounded down.

    ``num_tokens`` of all components together; None takes as many as shares and epochs allow. More
    than one epoch is a component's tokens again. Raises ValueError where a component holds no
    tokens, or would need more epochs than it may have, and names it.
    """
    total = sum(Fraction(component.share) for component in components)
    shares = [Fraction(component.share) / total for component in components]
    most = [component.max_epochs * n for component, n in zip(components, tokens, strict=True)]
    for component, n in zip(components, most, strict=True):
        if n < 1:
            raise ValueError(f"component {component.name} holds no tokens: leave it out")
    wanted = Fraction(
        min(n / share for n, share in zip(most, shares, strict=True))
        if num_tokens is None
        else num_tokens
    )
    found = [int(share * wanted) for share in shares]
    for component, held, needed in zip(components, tokens, found, strict=True):
        epochs = -(-needed // held)
        if epochs > component.max_epochs:
            raise ValueError(
                f"component {component.name} holds {held:,} tokens, its share is {needed:,}: that "
                f"is {epochs} epochs, max_epochs is {component.max_epochs}: raise that, lower its "
                "share, or take fewer tokens in all"
            )
    return found


def blend(streams: Sequence[Iterator[pa.Table]], shares: Sequence[float]) -> Iterator[pa.Table]:
    """Merge streams of documents, so that tokens are in proportion to ``shares`` at every point.

    Tables need ``num_tokens`` and the same columns in all streams; the order within a stream stays.
    After any document, component c has taken its share of all tokens to within half a document of
    its own and its share of half a document of every component. Where a stream ends the others go
    on. What comes out does not depend on how streams are cut into tables. One table of each stream
    is in memory.
    """
    sources = [_Source(stream, share) for stream, share in zip(streams, shares, strict=True)]
    while True:
        for source in sources:
            source.fill()
        open_ = [i for i, source in enumerate(sources) if source.times.size]
        if not open_:
            return
        # The first stream to run out: what comes after its last document is not known yet.
        horizon, first = min((sources[i].times[-1], i) for i in open_)
        taken, times = [], []
        for i in open_:
            rows, at = sources[i].take(horizon, "right" if i <= first else "left")
            taken.append(rows)
            times.append(at)
        # At the same time the earlier stream is first: they stand in this order.
        order = np.argsort(np.concatenate(times), kind="stable")
        yield pa.concat_tables(taken).take(pa.array(order))


class _Source:
    """The rows of a stream that are read and not taken, with their virtual times."""

    def __init__(self, stream: Iterator[pa.Table], share: float) -> None:
        self._stream, self._share = stream, share
        self._tokens = 0
        self._rows: pa.Table | None = None
        self.times: NDArray[np.float64] = np.zeros(0)

    def fill(self) -> None:
        while not self.times.size:
            self._rows = next(self._stream, None)
            if self._rows is None:
                return
            tokens = self._rows["num_tokens"].to_numpy().astype(np.int64)
            ends = np.cumsum(tokens) + self._tokens
            self.times = (2 * ends - tokens) / (2 * self._share)
            self._tokens = int(ends[-1]) if len(ends) else self._tokens

    def take(self, horizon: float, side: str) -> tuple[pa.Table, NDArray[np.float64]]:
        assert self._rows is not None
        stop = int(np.searchsorted(self.times, horizon, side))  # type: ignore[call-overload]
        rows, times = self._rows.slice(0, stop), self.times[:stop]
        self._rows, self.times = self._rows.slice(stop), self.times[stop:]
        return rows, times
