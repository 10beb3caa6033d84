"""By how much the tiles that FlexAttention computes exceed the attended pairs.

    python tests/benchmarks/tiles.py [documents] [seed]

Documents alone and in packs of 20,480 tokens, all schedules alike, captions of 100 tokens. Then the
mixture of packing_strategies.py, packed by the cost of its pairs and by that of its tiles (each
document's mean over all starts): cost max/mean of the packs as they are laid out, in tiles.
"""

import sys

import numpy as np

from infra.layout import Image, Segment, Text, count
from infra.schedules import SCHEDULES
from packing.cost import coefficients, cost, qwen2_5_7b
from packing.plan import plan
from packing.strategies import Packing
from packing.tiles import document_tile_pairs

CAP = 20_480
SCALES = {256: 12, 512: 16, 1024: 18}
Documents = list[list[Segment]]


def text(length: int) -> Text:
    return Text(np.zeros(length, np.int32))


def image(draw: np.random.Generator, level: int, role: str = "target") -> Image:
    schedule = int(draw.integers(len(SCHEDULES)))
    codes = np.zeros(SCHEDULES[schedule].num_codes(SCALES[level]), np.int32)
    return Image(schedule, SCALES[level], codes, codes, role)  # type: ignore[arg-type]


def kinds(draw: np.random.Generator) -> dict[str, list[Segment]]:
    """A document of each kind."""
    found: dict[str, list[Segment]] = {f"text of {n:,}": [text(n)] for n in (100, 350, 1_000)}
    for level in SCALES:
        found[f"text-to-image {level}"] = [text(100), image(draw, level)]
        found[f"image {level}"] = [image(draw, level)]
    frames: list[Segment] = []
    for _ in range(5):
        frames += [text(100), image(draw, 512)]
    return found | {"5 frames 512": frames}


def laid_out(pack: Documents) -> tuple[float, int]:
    """Tiles and pairs of documents one after another."""
    start, tiles, pairs = 0, 0.0, 0
    for document in pack:
        counts = count(document)
        tiles += document_tile_pairs(document, start)
        pairs += counts.num_pairs
        start += counts.num_tokens
    return tiles, pairs


def mixture(draw: np.random.Generator, n: int) -> Documents:
    """Documents of the kinds and lengths of packing_strategies.py."""
    documents: Documents = []

    def caption() -> Text:
        return text(int(np.clip(draw.lognormal(np.log(90), 0.45), 8, 400)))

    for kind in draw.choice(4, n, p=np.array([700, 345, 20, 5]) / 1070):
        if kind == 0:
            documents.append([text(int(np.clip(draw.lognormal(np.log(250), 0.8), 8, 8_000)))])
            continue
        document: list[Segment] = [image(draw, 512, "condition")] if kind == 2 else []
        for _ in range(int(draw.integers(3, 6)) if kind == 3 else 1):
            document += [caption(), image(draw, 512)]
        documents.append(document)
    return documents


def main(n: int = 20_000, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    print(f"{'tiles over pairs':22} {'alone':>8} {'packed':>8}")
    for kind in kinds(draw):
        alone, packed = np.zeros(2), np.zeros(2)
        for _ in range(20):
            pack: Documents = []
            while sum(count(one).num_tokens for one in pack) < CAP:
                pack.append(kinds(draw)[kind])
            alone += laid_out(pack[:1])
            packed += laid_out(pack[:-1] or pack)
        print(f"{kind:22} {alone[0] / alone[1]:8.3f} {packed[0] / packed[1]:8.3f}")

    documents = mixture(draw, n)
    counts = np.array([count(document) for document in documents])
    tiles = np.array([document_tile_pairs(document) for document in documents])
    of = coefficients(qwen2_5_7b(), checkpointing=True)
    names = [f"{i:032x}" for i in range(n)]
    print(f"\n{n:,} documents, {counts[:, 0].mean():,.0f} tokens on average: packed by the cost of")
    for name, pairs in (("pairs", counts[:, 2]), ("tiles", tiles)):
        made = plan(names, counts[:, 0], cost(counts[:, 0], counts[:, 1], pairs, of), Packing())
        inside = made.pack >= 0
        found = np.zeros(made.num_packs)
        starts = np.append(0, np.cumsum(made.pack_documents))
        rows = made.document[inside]
        for pack in range(made.num_packs):
            mine = rows[starts[pack] : starts[pack + 1]]
            computed, _ = laid_out([documents[row] for row in mine])
            total, loss = counts[mine, 0].sum(), counts[mine, 1].sum()
            found[pack] = cost(total, loss, computed, of)
        worst = found.max() / found.mean()
        print(f"  {name}: {made.num_packs:,} packs, cost max/mean in tiles {worst:.4f}")


if __name__ == "__main__":
    main(*(int(word.replace("_", "")) for word in sys.argv[1:]))
