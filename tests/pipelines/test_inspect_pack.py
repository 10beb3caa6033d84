"""The page of one pack: true to what is in it, harmless, and clear about mistakes."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import runs
from infra.config import ConfigError
from infra.layout import Image, Text, count
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.members import Document
from packing.packs import Facts
from packing.shards import PACK_INDEX, shard_name, write_shard
from pipelines.inspect_pack import inspect_pack
from tokenize_offline import checkpoint, text

EVIL = "</div><script>alert(1)</script>"
OF = Coefficients(2.0, 0.25, 8.0, unit="s")
FOLDER = "packs/photos-256/v-1"


def image(schedule: int, role: str = "target", num_scales: int = 12) -> Image:
    rng = np.random.default_rng(schedule)
    inputs, targets = rng.integers(0, 4096, (2, SCHEDULES[schedule].num_codes(num_scales)))
    return Image(schedule, num_scales, inputs, targets, role)


def words(value: str, loss: bool = True) -> Text:
    return Text(np.array(text.load().encode(value)), loss)


@pytest.fixture(scope="module")
def documents() -> list[list[Document]]:
    pair = (words("A cup of coffee on a saucer."), image(4))
    turned = (image(30, "condition"), words("What is it?", False), words(f"A cat. {EVIL}"))
    long = (words("word " * 3000),)
    return [
        [
            Document("a" * 32, 0, "t2i", "photos", pair),
            Document("b" * 32, 3, "i2t", EVIL, turned),
        ],
        [Document("c" * 32, 0, "text", "web", long)],
    ]


@pytest.fixture
def packs(tmp_path: Path, documents: list[list[Document]]) -> Storage:
    """``packs/photos-256`` of the carried tokenizer and vocabulary."""
    return write_packs(tmp_path, documents)


def write_packs(tmp_path: Path, documents: list[list[Document]], **other: Any) -> Storage:
    storage, buffer = Storage(str(tmp_path / "workspace")), io.BytesIO()
    index = write_shard(buffer, shard_name(0), list(enumerate(documents)), OF, 4096)
    storage.write(f"{FOLDER}/{shard_name(0)}", buffer.getvalue())
    storage.write_part(f"{FOLDER}/index.parquet", index, PACK_INDEX, "pack")
    told: dict[str, Any] = {
        "tokenizer_id": checkpoint.identity(),
        "vocabulary_id": text.identity(),
        "num_codes": 4096,
        "text_vocab_size": 152_064,
        "level": 256,
    }
    facts = Facts(
        **(told | other), strategy="fixed_compute", token_cap=9_000, seed=0, cost_unit="s"
    )
    storage.write(f"{FOLDER}/packs.json", facts.to_json())
    part = Part("v-1/index.parquet", len(documents))
    record = TableRecord("packs/photos-256", "f", "f", "pack", (part,), vars(facts))
    runs.finish(storage, record, {"coefficients": OF}, (), 0.0)
    return storage


def page_of(storage: Storage, number: int = 0, **more: Any) -> tuple[str, list[str]]:
    lines = inspect_pack("photos-256", number, storage.root, **more)
    page = storage.read(f"inspect-photos-256-{number}.html").decode()
    return page, lines


def test_the_page_says_what_is_in_the_pack(packs: Storage, documents: list[list[Document]]) -> None:
    page, lines = page_of(packs)
    assert lines == [f"page      {packs.path('inspect-photos-256-0.html')}"]
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 4
    assert len(re.findall(r'<image href="data:image/png;base64,', page)) == 1
    assert "A cup of coffee on a saucer." in page
    counts = [count(document.segments) for document in documents[0]]
    total = sum(float(cost(*counted, OF)) for counted in counts)
    for document, counted in zip(documents[0], counts, strict=True):
        assert page.count(document.doc_id) >= 2
        assert f"{counted.num_pairs:,}" in page
        assert f"{float(cost(*counted, OF)) / total:.1%}" in page
    sha256 = packs.read_table(f"{FOLDER}/index.parquet")["sha256"][0].as_py()
    assert sha256 in page
    assert f"{sum(c.num_tokens for c in counts):,}" in page
    flipped = np.mean(
        documents[0][0].segments[1].input_codes != documents[0][0].segments[1].target_codes
    )
    assert f"{flipped:.1%} of the input codes are not" in page


def test_the_page_is_harmless_and_loads_nothing(packs: Storage) -> None:
    page, _ = page_of(packs)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src &#39;none&#39;" in page


def test_a_pack_of_long_text_has_no_pictures_and_says_what_it_leaves_out(packs: Storage) -> None:
    page, lines = page_of(packs, 1)
    assert len(lines) == 1
    assert "<img" not in page
    assert "the first 4,000 characters" in page


def test_without_tokenizer_or_vocabulary_the_page_says_so(
    tmp_path: Path, documents: list[list[Document]]
) -> None:
    storage = write_packs(tmp_path, documents, tokenizer_id="t" * 32, vocabulary_id="v" * 32)
    for name in storage.names("runs"):
        storage.remove(f"runs/{name}")
    page, lines = page_of(storage)
    assert [line.split(":")[0] for line in lines[:-1]] == ["note"] * 3
    assert f"no tokenizer {'t' * 32} is at hand" in lines[0]
    assert f"no text vocabulary {'v' * 32} is at hand" in lines[1]
    assert "shares are of the tokens" in lines[2]
    assert "<img" not in page
    ids = documents[0][0].segments[0].ids.tolist()
    assert " ".join(map(str, ids)) in page
    with pytest.raises(ConfigError, match=r"--tokenizer .* is .*, the packs are of tttt"):
        page_of(storage, tokenizer="")
    with pytest.raises(ConfigError, match=r"--vocabulary .* is .*, the packs are of vvvv"):
        page_of(storage, vocabulary="")
    with pytest.raises(ConfigError, match="nowhere"):
        page_of(storage, tokenizer="/nowhere.safetensors")


@pytest.mark.parametrize("number", [-1, 2, 1000])
def test_a_pack_that_is_not_there_is_told(packs: Storage, number: int) -> None:
    with pytest.raises(ConfigError, match=f"has no pack {number}: use 0 to 1"):
        page_of(packs, number)


def test_mistakes_are_told_in_one_line(packs: Storage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packs/other is not there"):
        inspect_pack("other", 0, packs.root)
    with pytest.raises(ConfigError, match="is a folder"):
        page_of(packs, output=str(tmp_path))
    data = bytearray(packs.read(f"{FOLDER}/shard-000000.tar"))
    data[700] ^= 1
    packs.write(f"{FOLDER}/shard-000000.tar", bytes(data))
    with pytest.raises(
        ConfigError, match=r"pack 0: the checksum differs.*nextscale verify"
    ) as told:
        page_of(packs)
    assert "\n" not in str(told.value)
