"""What README gives to people who read packs without our code."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.layout import Image, Text
from infra.schedules import SCHEDULES
from packing.cost import Coefficients
from packing.members import Document
from packing.shards import shard_name, write_shard

README = Path(__file__).parents[2] / "README.md"


def documents_of_readme() -> Any:
    blocks = [block.split("```")[0] for block in README.read_text().split("```python\n")[1:]]
    [recipe] = [block for block in blocks if "webdataset" in block]
    assert "packing" not in recipe
    assert "infra" not in recipe
    names: dict[str, Any] = {}
    exec(recipe, names)  # our own README
    return names["documents"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_the_recipe_gives_every_document_of_every_pack(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def document(name: str) -> Document:
        schedule = int(draw.integers(len(SCHEDULES)))
        codes = draw.integers(0, 4096, (2, SCHEDULES[schedule].num_codes(5)))
        image = Image(schedule, 5, codes[0], codes[1])
        return Document(name, 0, "t2i", "s", (Text(draw.integers(0, 99, 7)), image, Text(codes[0])))

    packs = [(i, [document(f"{i}-{k}") for k in range(3)]) for i in range(4)]
    for shard in range(2):
        with open(tmp_path / shard_name(shard), "wb") as file:
            write_shard(file, shard_name(shard), packs[2 * shard :][:2], Coefficients(1, 0, 0))
    shards = [str(tmp_path / shard_name(shard)) for shard in range(2)]
    found = list(documents_of_readme()(shards))
    assert len(found) == 4
    for ours, (_, expected) in zip(found, packs, strict=True):
        assert [doc_id for doc_id, _ in ours] == [document.doc_id for document in expected]
        for (_, segments), document in zip(ours, expected, strict=True):
            for (kind, *arrays), segment in zip(segments, document.segments, strict=True):
                if isinstance(segment, Text):
                    assert kind == "text"
                    assert np.array_equal(arrays[0], segment.ids)
                else:
                    assert kind == "image"
                    assert np.array_equal(arrays[0], segment.input_codes)
                    assert np.array_equal(arrays[1], segment.target_codes)
    gc.collect()  # while the warning is expected
