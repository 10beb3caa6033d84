"""From picture files through documents to codes and back: every kind of file, the right way up."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data

from infra import catalog, pixels, runs
from infra.pixels import Pixels
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES, nearest
from infra.schema import ERROR_TYPE, TOKENS
from infra.storage import Storage
from operators.image_text import ImageText
from pipelines.phase import Phase, check_columns
from pipelines.recipe import Recipe
from pipelines.sections import Tokenize
from pipelines.source import Source
from pipelines.tables_doc import QUERIES
from pipelines.tokenize_documents import remove_other_replicas, tokenize_phase, tokenize_phases
from tokenize_offline import checkpoint
from tokenize_offline.codes import decode
from tokenize_offline.extract_codes import ExtractCodes
from tokenize_offline.model import Tokenizer

[FLIPS] = [query for question, query in QUERIES if "self-correction" in question]
ORIENTATION = 0x0112  # the EXIF tag
# What Pillow's exif_transpose does for each value, backwards.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.set_num_threads(1)
    return checkpoint.load()


@pytest.fixture(scope="module")
def upright() -> Image.Image:
    """A photograph without symmetry, 4 : 3."""
    return Image.fromarray(data.astronaut()[:384])


def stored(picture: Image.Image, format_: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return out.getvalue()


def turned(picture: Image.Image, orientation: int) -> bytes:
    """A JPEG whose pixels lie as a camera held that way stores them."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return stored(picture.transpose(STORED[orientation]), "JPEG", quality=95, exif=exif)


def tokenized(files: list[bytes], rate: float = 0.0, **settings: Any) -> list[dict[str, Any]]:
    count = len(files)
    columns = {
        "doc_id": [f"d{i}" for i in range(count)],
        "sample_id": [f"s{i}" for i in range(count)],
        "source": ["files"] * count,
        "task": ["t2i"] * count,
        "text": ["a picture"] * count,
        "bytes": pa.array(files, pa.large_binary()),
        "error": pa.array([None] * count, ERROR_TYPE),
    }
    documents = ImageText(**settings)(pa.table(columns))
    return ExtractCodes(rate=rate)(documents).to_pylist()


def drawn(tokenizer: Tokenizer, row: dict[str, Any]) -> Pixels:
    """The picture that the codes of a document's image stand for."""
    assert row["error"] is None
    [image] = [segment for segment in row["segments"] if segment["kind"] == "image"]
    codes = np.array([image["target_codes"]])
    return decode(tokenizer, codes, SCHEDULES[image["schedule"]], image["num_scales"])[0]


def psnr(one: Pixels, other: Pixels) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


def check_orientation(found: Pixels, picture: Image.Image) -> None:
    """``found`` looks like ``picture``, and less like it turned in any way that has its shape."""
    rgb = np.asarray(picture.convert("RGB"))
    assert found.shape[:2] == nearest(*rgb.shape[:2]).image_size(256)
    wanted, _ = pixels.resize_crop(rgb, *found.shape[:2])
    fit = psnr(found, wanted)
    assert 18 < fit < 60
    others = [wanted[::-1], wanted[:, ::-1], wanted[::-1, ::-1]]
    assert all(fit > psnr(found, other) + 3 for other in others)


def test_every_kind_of_file_comes_back_the_right_way_up(
    tokenizer: Tokenizer, upright: Image.Image
) -> None:
    rgba = upright.copy()
    rgba.putalpha(Image.new("L", upright.size, 255))
    deep = np.asarray(upright.convert("L")).astype(np.uint16) * 257
    files = {
        "jpeg": stored(upright, "JPEG", quality=95),
        "rgba": stored(rgba, "PNG"),
        "cmyk": stored(upright.convert("CMYK"), "JPEG", quality=95),
        "grey": stored(upright.convert("L"), "PNG"),
        "16 bit": stored(Image.fromarray(deep), "PNG"),
        **{f"exif {value}": turned(upright, value) for value in STORED},
    }
    for name, row in zip(files, tokenized(list(files.values())), strict=True):
        is_grey = name in ("grey", "16 bit")
        check_orientation(drawn(tokenizer, row), upright.convert("L") if is_grey else upright)


@pytest.mark.parametrize(
    "name",
    [
        "exif_portrait_8.jpg",
        "exif_landscape_6.jpg",
        "wesaturate_keong_gray.png",
        "wesaturate_ria_rgba.png",
    ],
)
def test_real_files_come_back_the_right_way_up(
    tokenizer: Tokenizer, assets: Path, name: str
) -> None:
    file = assets / "images" / name
    with Image.open(file) as picture:
        wanted = ImageOps.exif_transpose(picture)
    if wanted.mode == "RGBA":
        wanted = Image.alpha_composite(Image.new("RGBA", wanted.size, "white"), wanted)
    [row] = tokenized([file.read_bytes()])
    check_orientation(drawn(tokenizer, row), wanted)


@pytest.mark.parametrize("is_tall", [False, True])
def test_extreme_ratios_and_what_is_beyond_them(
    tokenizer: Tokenizer, upright: Image.Image, is_tall: bool
) -> None:
    large, short = upright.resize((1296, 1296)), 144
    sizes = [(short, n * short) if is_tall else (n * short, short) for n in (4, 8, 9)]
    pictures = [ImageOps.fit(large, size) for size in sizes]
    files = [stored(picture, "PNG") for picture in pictures]
    *fine, beyond = tokenized(files)
    for row, picture in zip(fine, pictures, strict=False):
        check_orientation(drawn(tokenizer, row), picture)
    assert (beyond["error"]["stage"], beyond["error"]["type"]) == ("documents", "too_elongated")
    [cut] = tokenized(files[-1:], max_cropped=1.0)
    check_orientation(drawn(tokenizer, cut), pictures[-1])


def test_sums_over_tokens_are_those_of_one_replica(
    curated: Recipe, run_alone: Callable[[Storage, Phase], TableRecord]
) -> None:
    sums = "SELECT dataset, task, count(*), sum(num_tokens) FROM tokens GROUP BY ALL ORDER BY ALL"
    documents = runs.load_record(curated.storage, "documents/mixed")
    assert documents is not None
    found = []
    for replicas in (1, 2):
        section = Tokenize(operator=ExtractCodes(device="cpu"), replicas=replicas)
        recipe = dataclasses.replace(curated, tokenize=section)
        for phase in tokenize_phases(recipe, documents):
            run_alone(recipe.storage, phase)
        with catalog.connect(recipe.storage) as con:
            found.append([con.sql(query).fetchall() for query in (sums, FLIPS)])
    assert found[0] == found[1]
    with catalog.connect(curated.storage) as con:
        lengths = [
            con.sql(f"SELECT doc_id, num_tokens FROM {view} ORDER BY ALL").fetchall()
            for view in ("tokens", "token_replicas WHERE replica = 1")
        ]
    assert lengths[0] == lengths[1]
    # As many positions, of other codes.
    with catalog.connect(curated.storage) as con:
        [(num_equal,)] = con.sql(
            "SELECT count(*) FROM tokens AS t JOIN token_replicas AS r USING (doc_id) "
            "WHERE t.segments = r.segments AND t.task = 't2i'"
        ).fetchall()
    assert num_equal == 0


def test_flips_per_scale_are_one_query_over_the_table(tmp_path: Path, upright: Image.Image) -> None:
    files = [stored(picture, "PNG") for picture in (upright, ImageOps.mirror(upright))]
    rows = tokenized(files, rate=0.6)
    storage = Storage(str(tmp_path))
    table = pa.Table.from_pylist(rows, schema=TOKENS)
    storage.write_part("tokens/mixed-256/v/part-00000.parquet", table, TOKENS, "doc_id")
    part = Part("v/part-00000.parquet", len(rows))
    runs.save_record(storage, TableRecord("tokens/mixed-256", "f", "r", "doc_id", (part,)))
    with catalog.connect(storage) as con:
        found = con.sql(FLIPS).fetchall()
    images = [segment for row in rows for segment in row["segments"] if segment["kind"] == "image"]
    counts = [np.sum([image[name] for image in images], axis=0) for name in ("sampled", "flipped")]
    assert found == [(s, *c) for s, c in enumerate(zip(*map(list, counts), strict=True), start=1)]
    flips = sum(
        np.sum(np.array(image["input_codes"]) != np.array(image["target_codes"]))
        for image in images
    )
    assert sum(changed for *_, changed in found) == flips > 100


def test_replicas_beyond_the_recipes_are_removed_and_nothing_else_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    tables = [f"mixed-256{end}" for end in ("", "-r1", "-r2", "-r10")]
    others = ["mixed-512", "mixed-512-r1", "mixed-256-r2-256", "mixed-256-r2-256-r1", "m-256-r1"]
    for name in tables + others:
        file = f"tokens/{name}/v/part-00000.parquet"
        storage.write_part(file, TOKENS.empty_table(), TOKENS, "doc_id")
        record = TableRecord(f"tokens/{name}", "f", "r", "doc_id", (Part(file, 0),))
        runs.save_record(storage, record)
    storage.write("tokens/mixed-256-r3/v/_units/p0.parquet", b"of a run that was killed")
    recipe = Recipe(
        dataset="mixed",
        workspace=str(tmp_path),
        sources=(Source(name="some", kind="folder", path=str(tmp_path)),),
        tokenize=Tokenize(operator=ExtractCodes(device="cpu"), replicas=2),
    )
    for replicas, left in ((2, tables[:2]), (1, tables[:1])):
        assert recipe.tokenize is not None
        section = dataclasses.replace(recipe.tokenize, replicas=replicas)
        remove_other_replicas(dataclasses.replace(recipe, tokenize=section))
        assert storage.names("tokens") == sorted(left + others)


def test_the_phase_names_its_table_by_the_level_and_tells_what_the_codes_are(
    tmp_path: Path,
) -> None:
    recipe = Recipe(
        dataset="mixed",
        workspace=str(tmp_path),
        sources=(Source(name="some", kind="folder", path=str(tmp_path)),),
        tokenize=Tokenize(operator=ExtractCodes(device="cpu")),
    )
    documents = TableRecord(
        "documents/mixed", "f", "r", "doc_id", (Part("v/part-00000.parquet", 3),)
    )
    phase = tokenize_phase(recipe, documents)
    check_columns(phase)
    assert (phase.table, phase.key, phase.num_parts) == ("tokens/mixed-256", "doc_id", 1)
    assert phase.schema == TOKENS
    assert phase.facts == ExtractCodes().facts
