"""What a pack consists of, as numbers for the SVG of templates/inspect_pack.html.

Bars of shares (kinds of positions, what they predict, what they cost), and what frames the picture
of the mask: where documents begin, what stands at every position, and where something is predicted.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.layout import NO_TARGET, Counts, Sequence
from packing.cost import Coefficients

SIDE = 640.0  # of the picture, in units of its view box
CONDITION = 64  # added to a scale: more than there are scales
TEXT, MARK = 0, 1


@dataclass(frozen=True)
class Piece:
    """A piece of a bar; ``colour`` is a CSS class of the template, ``amount`` for people."""

    name: str
    share: float
    amount: str
    colour: str


@dataclass(frozen=True)
class Bar:
    title: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Stretch:
    """Positions of one kind, from ``start`` on, ``length`` of the view box long."""

    start: float
    length: float
    colour: str
    title: str


@dataclass(frozen=True)
class Figure:
    """Along both sides of the mask: ``kinds`` of positions, ``losses`` where one is predicted.

    ``documents``: where each of them begins and how long it is.
    """

    side: float
    kinds: list[Stretch]
    losses: list[Stretch]
    documents: list[Stretch]


def position_bars(sequence: Sequence) -> list[Bar]:
    """What stands at the positions, and what they predict."""
    condition = _of_conditions(sequence)
    vision = sequence.scale > 0
    marks = (sequence.image >= 0) & ~vision
    predicted = sequence.targets != NO_TARGET
    codes = predicted & (sequence.loss_scale > 0)
    stands = [
        ("text", ~vision & ~marks, "text"),
        ("<boi>, <eoi>", marks, "mark"),
        ("codes of targets", vision & ~condition, "target"),
        ("codes of conditions", vision & condition, "condition"),
    ]
    predicts = [
        ("text ids", predicted & ~codes, "text"),
        ("codes", codes, "target"),
        ("nothing", ~predicted, "none"),
    ]
    return [
        _bar("What stands at the positions", [(n, int(m.sum()), c) for n, m, c in stands]),
        _bar("What they predict", [(n, int(m.sum()), c) for n, m, c in predicts]),
    ]


def cost_bar(counts: Counts, of: Coefficients) -> Bar:
    """The cost of a pack by what causes it."""
    amounts = [
        ("positions: linear layers", counts.num_tokens * of.per_token, "text"),
        ("pairs: attention", counts.num_pairs * of.per_pair, "target"),
        ("predictions: output head", counts.num_loss * of.per_loss, "condition"),
        ("the pack itself", of.per_pack, "mark"),
    ]
    return _bar("What it costs", amounts, of.unit)


def mask_figure(sequence: Sequence) -> Figure:
    """The frame of the mask: stretches of equal positions, in order."""
    vision = sequence.scale > 0
    kind = np.where(vision, sequence.scale + MARK, TEXT).astype(np.int64)
    kind[(sequence.image >= 0) & ~vision] = MARK
    kind[vision & _of_conditions(sequence)] += CONDITION
    # Scales that follow on each other are told apart by their shade, documents by their line.
    kinds = [
        _stretch(sequence, start, stop, *_name(int(kind[start])))
        for start, stop in _runs(np.stack([kind, sequence.document, sequence.image]))
    ]
    lost = np.where(sequence.targets == NO_TARGET, 0, np.where(sequence.loss_scale > 0, 2, 1))
    names = {1: ("text", "text ids predicted"), 2: ("target", "codes predicted")}
    losses = [
        _stretch(sequence, start, stop, *names[int(lost[start])])
        for start, stop in _runs(np.stack([lost, sequence.document]))
        if lost[start]
    ]
    documents = [
        _stretch(sequence, start, stop, "", f"document {int(sequence.document[start])}")
        for start, stop in _runs(sequence.document[None])
    ]
    return Figure(SIDE, kinds, losses, documents)


def _of_conditions(sequence: Sequence) -> NDArray[np.bool_]:
    """Whether a position is of an image that is only read."""
    roles = np.array([span.role == "condition" for span in sequence.images] or [False])
    return roles[np.maximum(sequence.image, 0)] & (sequence.image >= 0)


def _runs(keys: NDArray[np.integer]) -> list[tuple[int, int]]:
    """[start, stop) of stretches whose columns of ``keys`` [K, T] are equal."""
    changes = (np.diff(keys.astype(np.int64), axis=1) != 0).any(axis=0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist()]
    return list(zip(starts, [*starts[1:], keys.shape[1]], strict=True))


def _stretch(sequence: Sequence, start: int, stop: int, colour: str, name: str) -> Stretch:
    unit = SIDE / sequence.num_tokens
    title = f"{name}: positions {start:,} to {stop - 1:,}"
    return Stretch(round(start * unit, 2), round((stop - start) * unit, 2), colour, title)


def _name(kind: int) -> tuple[str, str]:
    """CSS classes and name of a kind of position."""
    if kind in (TEXT, MARK):
        return ("text", "text") if kind == TEXT else ("mark", "<boi> or <eoi>")
    role = "condition" if kind > CONDITION else "target"
    scale = kind - MARK - (CONDITION if role == "condition" else 0)
    return f"{role} {'odd' if scale % 2 else 'even'}", f"scale {scale} of a {role}"


def _bar(title: str, amounts: Several[tuple[str, float, str]], unit: str = "") -> Bar:
    """A bar of what there is; sums are in ``unit``, or counts without one."""
    total = sum(amount for _, amount, _ in amounts)
    pieces = [
        Piece(name, amount / total, f"{amount:.3g} {unit}" if unit else f"{amount:,}", colour)
        for name, amount, colour in amounts
        if amount
    ]
    return Bar(title, pieces)
