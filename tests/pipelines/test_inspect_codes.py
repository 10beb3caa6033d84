"""What is shown of codes: true to the tables, harmless, and clear about mistakes."""

import base64
import dataclasses
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from infra import runs
from infra.config import ConfigError
from infra.pixels import decode as decode_picture
from infra.runs import Part, TableRecord
from infra.schedules import SCHEDULES
from infra.schema import DOCUMENTS, TOKENS
from infra.storage import Storage
from pipelines import coded_images
from pipelines.code_summary import Measures, summarise
from pipelines.coded_images import find_images, redraw
from pipelines.inspect_codes import inspect_codes
from pipelines.recipe import Recipe
from pipelines.sections import Tokenize
from pipelines.source import Source
from pipelines.tokenize_documents import tokenize_phase
from tokenize_offline import checkpoint
from tokenize_offline.codes import decode
from tokenize_offline.extract_codes import ExtractCodes

torch.set_num_threads(1)
NUM_SCALES = 12


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoint.load()


@pytest.fixture(scope="module")
def coded_once(curated_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of `coded`, made once; do not write here."""
    workspace = tmp_path_factory.mktemp("coded") / "workspace"
    shutil.copytree(curated_once, workspace)
    return workspace


@pytest.fixture
def coded(recipe: Recipe, coded_once: Path, run_alone: Callable[..., TableRecord]) -> Recipe:
    """The small dataset of the tests with its tokens."""
    recipe = dataclasses.replace(recipe, tokenize=Tokenize())
    made = dataclasses.replace(recipe, workspace=str(coded_once))
    if tokens_of(made) is None:
        documents = documents_of(made)
        run_alone(made.storage, tokenize_phase(made, documents))
    shutil.copytree(coded_once, recipe.workspace)
    return recipe


def tokens_of(recipe: Recipe) -> TableRecord | None:
    return runs.load_record(recipe.storage, "tokens/mixed-256")


def documents_of(recipe: Recipe) -> TableRecord:
    documents = runs.load_record(recipe.storage, "documents/mixed")
    assert documents is not None
    return documents


def rows_of(recipe: Recipe, record: TableRecord | None) -> list[dict[str, Any]]:
    assert record is not None
    tables = [recipe.storage.read_table(record.path(n)) for n in range(len(record.parts))]
    return [row for table in tables for row in table.to_pylist()]


def rewrite(recipe: Recipe, table: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Replace a table's rows, its record otherwise as it was."""
    record = runs.load_record(recipe.storage, table)
    assert record is not None
    bare = pa.schema([field.remove_metadata() for field in schema])
    file = f"{record.parts[0].folder}/part-90000.parquet"
    made = pa.Table.from_pylist(rows, schema=bare)
    recipe.storage.write_part(f"{table}/{file}", made, schema, "doc_id")
    parts = (Part(file, len(rows)),)
    runs.save_record(recipe.storage, dataclasses.replace(record, parts=parts))


def images_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [s for row in rows for s in row["segments"] or () if s["kind"] == "image"]


def page_of(recipe: Recipe, **more: Any) -> tuple[str, list[str]]:
    lines = inspect_codes(recipe, **more)
    return (Path(recipe.workspace) / "inspect-codes.html").read_text(encoding="utf-8"), lines


def test_numbers_are_those_of_the_tables(coded: Recipe, tokenizer: Any) -> None:
    rows = [row for row in rows_of(coded, tokens_of(coded)) if images_of([row])][:4]
    images = images_of(rows)
    pictures = {row["doc_id"]: row for row in rows_of(coded, documents_of(coded))}
    assert len(images) == 4
    page, lines = page_of(coded, ids=[row["doc_id"] for row in rows])
    table = [line.split() for line in lines]
    shown = {line[0]: line[1:] for line in table if len(line) == 9}
    for scale in (1, 7, NUM_SCALES):
        psnr: list[list[float]] = [[], []]
        codes, flipped, drawn = [], 0, 0
        for row in rows:
            for segment in images_of([row]):
                schedule = SCHEDULES[segment["schedule"]]
                ends = [0, *schedule.code_ends]
                span = slice(ends[scale - 1], ends[scale])
                [stored] = [s for s in pictures[row["doc_id"]]["segments"] if s["image"]]
                original = decode_picture(stored["image"]).rgb.astype(float)
                for kind, name in enumerate(("target_codes", "input_codes")):
                    picture = decode(
                        tokenizer, np.array([segment[name]]), schedule, NUM_SCALES, scale
                    )[0]
                    error = ((picture - original) ** 2).mean()
                    psnr[kind].append(10 * np.log10(255**2 / error))
                pairs = zip(
                    segment["target_codes"][span], segment["input_codes"][span], strict=True
                )
                flipped += sum(a != b for a, b in pairs)
                drawn += segment["sampled"][scale - 1]
                codes += segment["target_codes"][span]
        expected = [
            f"{len(codes):,}",
            f"{drawn / len(codes):.1%}",
            f"{flipped / len(codes):.1%}",
            *(f"{np.mean(values):.2f}" for values in psnr),
            f"{len(set(codes)):,}",
            f"{len(set(codes)) / 4096:.1%}",
        ]
        assert shown[str(scale)][:7] == expected
        for value in expected:
            assert value in page
    assert page.count('class="whole"') == len(images)
    every = [code for image in images for code in image["target_codes"]]
    assert shown["all"][0] == f"{len(every):,}"
    assert shown["all"][5] == f"{len(set(every)):,}"


def test_more_scales_draw_better_and_inputs_are_no_worse(coded: Recipe, tokenizer: Any) -> None:
    tokens = tokens_of(coded)
    assert tokens is not None
    images = find_images(coded.storage, tokens, documents_of(coded), num_images=50)
    found = [redraw(tokenizer, image) for image in images]
    for kind in ("target_db", "input_db"):
        mean = np.mean([getattr(one, kind) for one in found], axis=0)
        assert mean.shape == (NUM_SCALES,)
        assert (np.diff(mean) > -0.1).all()
        assert mean[-1] > mean[0] + 3
    worse = np.mean([one.target_db[-1] - one.input_db[-1] for one in found])
    assert worse < 0
    for image, one in zip(images, found, strict=True):
        assert {p.shape for p in one.from_targets + one.from_inputs} == {image.original.shape}
        assert image.num_codes.sum() == len(image.target_codes)


def test_the_page_loads_nothing_and_believes_nothing(coded: Recipe) -> None:
    rows = rows_of(coded, documents_of(coded))
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e'
    for row in rows:
        for segment in row["segments"] or ():
            segment["text"] = segment["text"] and evil
    rewrite(coded, "documents/mixed", rows, DOCUMENTS)
    page, _ = page_of(coded, num_pictures=2)
    assert "default-src &#39;none&#39;" in page
    assert "<script" not in page
    assert "onerror=alert(2)&gt;" in page
    assert "\u202e" not in page
    uris = re.findall(r'src="([^"]*)"', page)
    assert len(uris) == 2 * (3 + 2 * NUM_SCALES)
    for uri in uris:
        assert uri.startswith("data:image/jpeg;base64,")
        assert max(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size) <= 640


def test_images_are_found_by_the_beginnings_of_ids(coded: Recipe) -> None:
    tokens = tokens_of(coded)
    assert tokens is not None
    find = (coded.storage, tokens, documents_of(coded))
    every = find_images(*find, num_images=50)
    first, second = every[0], every[-1]
    for words in ([first.doc_id, second.sample_id], [first.sample_id[:12], second.doc_id[:12]]):
        found = {image.doc_id for image in find_images(*find, words)}
        assert found == {first.doc_id, second.doc_id}
    [one] = find_images(*find, [first.doc_id])
    [segment] = images_of([r for r in rows_of(coded, tokens) if r["doc_id"] == first.doc_id])
    assert one.input_codes.tolist() == segment["input_codes"]
    assert one.target_codes.tolist() == segment["target_codes"]
    assert one.flipped.tolist() == segment["flipped"]
    for words in ([""], [first.doc_id, ""]):
        with pytest.raises(ConfigError, match="an id is empty"):
            find_images(*find, words)
    with pytest.raises(ConfigError, match="begins with `'; DROP`"):
        find_images(*find, [first.doc_id, "'; DROP"])


def test_a_draw_is_of_the_seed_alone(coded: Recipe) -> None:
    tokens = tokens_of(coded)
    assert tokens is not None
    find = (coded.storage, tokens, documents_of(coded))
    every = [image.doc_id for image in find_images(*find, num_images=50)]
    draws = [
        tuple(image.doc_id for image in find_images(*find, num_images=2, seed=seed))
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1
    assert all(set(draw) <= set(every) and len(draw) == 2 for draw in draws)


def test_roles_are_summed_up_apart_and_old_tokens_do_not_say_what_was_drawn(coded: Recipe) -> None:
    rows = rows_of(coded, tokens_of(coded))
    for image in images_of(rows):
        image["sampled"] = None
    shown = [row for row in rows if images_of([row])][:3]
    images = images_of(shown)
    images[0]["role"] = "condition"
    images[0]["input_codes"] = images[0]["target_codes"]
    rewrite(coded, "tokens/mixed-256", rows, TOKENS)
    page, lines = page_of(coded, ids=[row["doc_id"] for row in shown])
    titles = [line for line in lines if ": PSNR" in line]
    assert [title.split(":")[0] for title in titles] == [
        f"{len(images) - 1} target images",
        "1 condition image",
    ]
    target, condition = [line.split() for line in lines if line.startswith("all ")]
    assert target[2] == condition[2] == "-"
    assert condition[3] == "0.0%" != target[3]
    assert condition[4] == condition[5]
    assert ">drawn<" not in page
    assert ">1 condition image</h2>" in page


def test_a_plain_picture_is_written_too(coded: Recipe, tmp_path: Path) -> None:
    paths = str(tmp_path / "made/page.html"), str(tmp_path / "made/sheet.png")
    lines = inspect_codes(coded, num_pictures=2, output=paths[0], png=paths[1])
    assert [line.split()[-1] for line in lines[-2:]] == list(paths)
    sheet = np.asarray(Image.open(paths[1]).convert("RGB"))
    assert sheet.shape[1] == 13 * 200 + 8
    assert 4 * 60 < sheet.shape[0] < 4 * 230 + 40
    # The first column of the first row is the original; that of the last row is empty.
    assert sheet[40:100, 8:200].std() > 10
    assert len(np.unique(sheet[-60:-30, 8:200])) <= 3


def test_tables_and_page_may_lie_on_s3(coded: Recipe, s3: str, tmp_path: Path) -> None:
    there = dataclasses.replace(coded, workspace=f"{s3}/workspace")
    for kind in ("tokens", "documents"):
        for path, _, _ in coded.storage.find(kind):
            there.storage.write(path, coded.storage.read(path))
    lines = inspect_codes(there, num_pictures=1, png=f"{s3}/pictures/sheet.png")
    assert lines[-2] == f"page      {s3}/workspace/inspect-codes.html"
    page = there.storage.read("inspect-codes.html").decode()
    inspect_codes(coded, num_pictures=1)
    local = Path(coded.workspace, "inspect-codes.html").read_text(encoding="utf-8")
    assert page.replace(there.storage.path(), coded.storage.path()) == local
    assert Storage(s3).read("pictures/sheet.png").startswith(b"\x89PNG")


def test_a_replica_has_a_table_of_its_own(coded: Recipe, run_alone: Any) -> None:
    assert coded.tokenize is not None
    coded = dataclasses.replace(coded, tokenize=Tokenize(replicas=3))
    run_alone(coded.storage, tokenize_phase(coded, documents_of(coded), 1))
    first, second = inspect_codes(coded, [], 1), inspect_codes(coded, [], 1, replica=1)
    assert not first[0].startswith("note")
    assert not second[0].startswith("note")
    assert first != second
    with pytest.raises(ConfigError, match=r"mixed-256-r2 is not there: `nextscale tokenize`"):
        inspect_codes(coded, replica=2)
    for replica in (-1, 3):
        told = rf"--replica is {replica}, tokenize\.replicas is 3: use 0 to 2"
        with pytest.raises(ConfigError, match=told):
            inspect_codes(coded, replica=replica)
    once = dataclasses.replace(coded, tokenize=Tokenize())
    with pytest.raises(ConfigError, match=r"tokenize\.replicas is 1: use 0$"):
        inspect_codes(once, replica=1)


def test_places_that_cannot_be_written_are_told_before_any_work(
    coded: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda weights: pytest.fail("work was done"))
    before = sorted(tmp_path.rglob("*"))
    for wrong in ("", str(tmp_path), f"{coded.workspace}/tokens/mixed-256/_table.json/page"):
        for option in ("output", "png"):
            with pytest.raises(ConfigError, match=r"empty name|is a folder|is no folder"):
                inspect_codes(coded, **{option: wrong})
    assert sorted(tmp_path.rglob("*")) == before


def test_what_begins_like_an_id_and_is_not_shown_is_counted(
    coded: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in rows_of(coded, tokens_of(coded)) if images_of([row])]
    begins = {
        letter: [
            row["doc_id"]
            for row in rows
            if any(name.startswith(letter) for name in (row["doc_id"], *row["sample_ids"]))
        ]
        for letter in "0123456789abcdef"
    }
    letter, begin = max(begins.items(), key=lambda item: len(item[1]))
    assert len(begin) > 1
    page, lines = page_of(coded, ids=[letter], num_pictures=1)
    assert lines[0].startswith(f"note: {len(begin) - 1} more documents are of ids that begin with")
    assert lines[0].split("`")[0] in page
    for words, most in (([letter], len(begin)), ([begin[0]], 1), ([], 1)):
        assert not inspect_codes(coded, words, most)[0].startswith("note")
    monkeypatch.setattr(coded_images, "MAX_DOCUMENTS", len(begin) - 1)
    with pytest.raises(ConfigError, match=f"{len(begin)} documents are asked for, .*name fewer"):
        inspect_codes(coded, [letter])


def test_stale_tokens_are_shown_with_a_note(coded: Recipe) -> None:
    changed = dataclasses.replace(coded, tokenize=Tokenize(operator=ExtractCodes(rate=0.1)))
    page, lines = page_of(changed, num_pictures=1)
    assert lines[0].startswith("note: documents or parameters have changed")
    assert lines[0].split("`")[0] in page


def test_mistakes_are_told_in_one_line(coded: Recipe, tmp_path: Path) -> None:
    for number in (0, 201):
        with pytest.raises(ConfigError, match=f"--pictures is {number}: use 1 to 200"):
            inspect_codes(coded, num_pictures=number)
    with pytest.raises(ConfigError, match="no `tokenize` section"):
        inspect_codes(dataclasses.replace(coded, tokenize=None))
    texts = (Source(name="some", kind="jsonl", path=str(tmp_path)),)
    with pytest.raises(ConfigError, match="dataset mixed is of texts"):
        inspect_codes(
            Recipe(dataset="mixed", workspace=coded.workspace, sources=texts, models=None)
        )
    weights = tmp_path / "other.safetensors"
    shutil.copy(checkpoint.carried(), weights)
    settings = checkpoint.carried().with_suffix(".json").read_text(encoding="utf-8")
    weights.with_suffix(".json").write_text(settings + "\n")
    other = Tokenize(operator=ExtractCodes(checkpoint=str(weights)))
    with pytest.raises(ConfigError, match=f"made by tokenizer {checkpoint.identity()}, .*checkpoi"):
        inspect_codes(dataclasses.replace(coded, tokenize=other))
    coded.storage.remove("tokens/mixed-256")
    with pytest.raises(ConfigError, match="mixed-256 is not there: `nextscale tokenize` makes it"):
        inspect_codes(coded)


def test_failed_and_changed_documents_are_told(coded: Recipe) -> None:
    rows = rows_of(coded, tokens_of(coded))
    bad = next(row for row in rows if images_of([row]))
    bad |= {"segments": None, "error": {"stage": "codes", "type": "corrupt", "message": "bad"}}
    rewrite(coded, "tokens/mixed-256", rows, TOKENS)
    with pytest.raises(ConfigError, match=rf"{bad['doc_id']} has no codes: .*codes:corrupt"):
        inspect_codes(coded, [bad["doc_id"]])
    before = rows_of(coded, documents_of(coded))
    good = next(row for row in rows if images_of([row]))["doc_id"]
    rewrite(coded, "documents/mixed", [row for row in before if row["doc_id"] != good], DOCUMENTS)
    with pytest.raises(ConfigError, match=f"has changed since .*{good}.*nextscale tokenize"):
        inspect_codes(coded, [good])
    turned = [
        segment | {"image": segment["image"] and b"no picture"}
        for row in before
        if row["doc_id"] == good
        for segment in row["segments"]
    ]
    changed = [row | {"segments": turned} if row["doc_id"] == good else row for row in before]
    rewrite(coded, "documents/mixed", changed, DOCUMENTS)
    with pytest.raises(ConfigError, match=f"has changed since .*{good}.*nextscale tokenize"):
        inspect_codes(coded, [good])
    texts = [row | {"task": "text"} for row in rows]
    rewrite(coded, "tokens/mixed-256", texts, TOKENS)
    with pytest.raises(ConfigError, match="holds no image: there are no codes to inspect"):
        inspect_codes(coded)


@pytest.mark.parametrize("seed", range(5))
def test_summaries_are_what_counting_by_hand_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grids = [1, 4, 9]
    images = []
    for _ in range(int(rng.integers(1, 5))):
        flipped = np.array([rng.integers(n + 1) for n in grids])
        used = [rng.integers(0, 8, n) for n in grids]
        db = rng.normal(20, 3, (2, 3))
        images.append(Measures(np.array(grids), flipped, flipped, db[0], db[1], used))
    summary = summarise("target", images, 8)
    assert [line.name for line in summary.lines] == ["1", "2", "3", "all"]
    for place, line in enumerate(summary.lines):
        scales = range(3) if line.name == "all" else [place]
        codes = [int(c) for image in images for s in scales for c in image.used[s]]
        flips = sum(int(image.flipped[s]) for image in images for s in scales)
        shares = [codes.count(c) / len(codes) for c in set(codes)]
        assert line.num_codes == len(codes)
        assert line.flipped == line.sampled == pytest.approx(flips / len(codes))
        assert line.num_used == len(set(codes)) == pytest.approx(8 * line.usage)
        assert line.perplexity == pytest.approx(np.prod([s**-s for s in shares]))
        last = scales[-1]
        assert line.target_db == pytest.approx(sum(i.target_db[last] for i in images) / len(images))
        assert line.input_db == pytest.approx(sum(i.input_db[last] for i in images) / len(images))
