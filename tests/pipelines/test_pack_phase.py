"""What a set of packs is made from: ranges of parts, and what the fingerprint covers."""

import dataclasses

import pytest

from infra.runs import Part, TableRecord
from packing.cost import Coefficients
from packing.plan import Packing
from packing.slices import Slicing
from pipelines.pack_phase import PackComponent, PackPhase, token_ranges

TOKENS = TableRecord("tokens/a-256", "f" * 32, "r" * 32, "doc_id", (Part("v/0", 9),))
COMPONENT = PackComponent("a", TOKENS)
PHASE = PackPhase("p", (COMPONENT,), Packing(), Coefficients(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("sizes", "num_rows", "expected"),
    [
        ([10] * 5, 25, [range(3), range(3, 5)]),
        ([10] * 5, 1000, [range(5)]),
        ([10] * 3, 1, [range(1), range(1, 2), range(2, 3)]),
        ([0, 0, 7], 5, [range(3)]),
        ([7, 0, 0], 5, [range(1), range(1, 3)]),
        ([], 5, []),
    ],
)
def test_parts_are_joined_until_they_have_so_many_rows(sizes, num_rows, expected):
    parts = tuple(Part(f"v/{number}", size) for number, size in enumerate(sizes))
    assert token_ranges(dataclasses.replace(TOKENS, parts=parts), num_rows) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"packing": Packing(seed=1)},
        {"coefficients": Coefficients(1.0, 1.0, 2.0)},
        {"slicing": Slicing(drop_captions=0.2)},
        {"slicing": Slicing(split_at_images=True)},
        {"num_tokens": 100},
        *(
            {"components": (dataclasses.replace(COMPONENT, **one),)}
            for one in (
                {"copies": 2},
                {"tasks": ("t2i",)},
                {"max_epochs": 2},
                {"share": 2.0},
                {"tokens": dataclasses.replace(TOKENS, fingerprint="e" * 32)},
                {"replicas": (dataclasses.replace(TOKENS, table="tokens/a-256-r1"),)},
                {"decisions": (dataclasses.replace(TOKENS, table="decisions/a"),)},
            )
        ),
    ],
)
def test_whatever_changes_the_packs_changes_their_fingerprint(change):
    assert dataclasses.replace(PHASE, **change).fingerprint != PHASE.fingerprint
    assert dataclasses.replace(PHASE, name="q").fingerprint == PHASE.fingerprint
