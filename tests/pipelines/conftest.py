"""A small curated dataset with everything in it, made by the real operators without Ray."""

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from infra import runs
from infra.runs import Part, TableRecord
from infra.schema import FRAMES, TOKENS
from infra.segments import Segment, Text, count
from infra.storage import Storage
from packing.plan import PLAN
from packing.shards import PACK_INDEX
from pipelines.balance import Balance
from pipelines.curate_images import curate, score
from pipelines.decide import Decide
from pipelines.phase import Phase, is_transient
from pipelines.recipe import Recipe
from pipelines.refresh import Made, refresh
from pipelines.rules import Rule
from pipelines.source import Source

EVIL = "<script>document.title = 'owned'</script>\"'><img src=x onerror=alert(1)>\n"
RULES = (
    Rule(name="small", keep="least(width, height) >= 128"),
    Rule(name="blurred", keep="clarity > 0.55 AND aspect BETWEEN 0.2 AND 5"),
    Rule(name="best", top=0.8, by="clarity"),
)


def run_here(storage: Storage, phase: Made) -> TableRecord:
    """Stands in for `refresh`: operators make the same rows, in this process."""
    if not isinstance(phase, Phase):
        return refresh(storage, phase)
    if phase.prepare is not None:
        phase.prepare(storage)
    parts = []
    version = runs.version_of(phase.fingerprint)
    for number in range(phase.num_parts):
        rows = phase.input.load(storage, phase.input.rows(storage, number))
        for operator in phase.operators:
            rows = operator(rows)
        rows = rows.drop_columns([name for name in rows.column_names if is_transient(name)])
        file = f"{version}/part-{number:05d}.parquet"
        storage.write_part(f"{phase.table}/{file}", rows, phase.schema, phase.key)
        parts.append(Part(file, len(rows), len(rows) - rows["error"].null_count))
    record = TableRecord(
        phase.table, phase.fingerprint, phase.row_spec, phase.key, tuple(parts), phase.facts
    )
    inputs = (*phase.value_inputs, *phase.row_inputs)
    runs.finish(storage, record, {"operators": phase.operators}, inputs, time.time())
    return record


@pytest.fixture(params=["local", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """Writes files into a source's root, here and on S3, and returns the root."""
    if request.param == "local":
        root = str(tmp_path / "source")
    else:
        root = request.getfixturevalue("s3") + "/source"

    def write(files: dict[str, bytes]) -> str:
        for name, data in files.items():
            Storage(root).write(name, data)
        return root

    return write


@pytest.fixture(scope="session")
def mixed_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and what a curator meets beside them; do not write here."""
    folder = tmp_path_factory.mktemp("mixed") / "photos"
    shutil.copytree(photos, folder)
    cat = Image.open(folder / "chelsea.png").convert("RGB")
    cat.resize((64, 48)).save(folder / "tiny.png")
    crisp = cat.resize((200, 150)).filter(ImageFilter.SHARPEN).filter(ImageFilter.SHARPEN)
    crisp.save(folder / "below_level.webp", lossless=True)
    (folder / "below_level.txt").write_text("A small picture of a cat.")
    cat.filter(ImageFilter.GaussianBlur(8)).save(folder / "soft.png")
    (folder / "cut_off.jpg").write_bytes((folder / "rocket.jpg").read_bytes()[:4000])
    (folder / "page.jpg").write_bytes(b"<html><script>alert(2)</script></html>")
    (folder / "half.json").write_bytes(b'{"caption": "A ha')
    shutil.copy(folder / "coffee.png", folder / "half.png")
    shutil.copy(folder / "coffee.png", folder / "no caption.png")
    odd = 'evil <b>&amp;" \u202e name \U0001f469\u200d\U0001f680'
    shutil.copy(folder / "astronaut.png", folder / f"{odd}.png")
    told = {
        "caption": EVIL + "very long " * 100_000,
        "attribution": "</figcaption><script>alert(3)</script>",
        "licence": "CC0",
    }
    (folder / f"{odd}.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(mixed_photos: Path, tmp_path: Path) -> Recipe:
    """A recipe over `mixed_photos` with rules and balancing, in a workspace of its own."""
    return _recipe(mixed_photos, tmp_path / "workspace")


def _recipe(mixed_photos: Path, workspace: Path) -> Recipe:
    return Recipe(
        dataset="mixed",
        workspace=str(workspace),
        sources=(Source(name="some", kind="folder", path=str(mixed_photos), part_rows=7),),
        models=None,
        decide=Decide(rules=RULES, balance=Balance(by="format", cap=4)),
    )


@pytest.fixture
def curate_here() -> Callable[[Recipe], TableRecord]:
    """Makes all tables of a recipe up to the documents, without Ray."""

    def make(recipe: Recipe) -> TableRecord:
        return curate(recipe, run=run_here)

    return make


@pytest.fixture
def run_alone() -> Callable[[Storage, Phase], TableRecord]:
    """Runs one phase in this process."""
    return run_here


@pytest.fixture
def score_here() -> Callable[[Recipe], None]:
    """Makes the scores of a recipe anew and leaves the decisions as they are."""

    def make(recipe: Recipe) -> None:
        [source] = recipe.sources
        samples = runs.load_record(recipe.storage, f"samples/{source.name}")
        assert samples is not None
        list(score(recipe, source, samples, run_here))

    return make


@pytest.fixture(scope="session")
def curated_once(mixed_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of `curated`, made once; do not write here."""
    workspace = tmp_path_factory.mktemp("curated") / "workspace"
    curate(_recipe(mixed_photos, workspace), run=run_here)
    return workspace


@pytest.fixture
def curated(recipe: Recipe, curated_once: Path) -> Recipe:
    """The recipe with all its tables up to the documents."""
    shutil.copytree(curated_once, recipe.workspace)
    return recipe


@pytest.fixture
def write_tokens() -> Callable[[Recipe], None]:
    """Adds tokens of the documents' ids (one of them failed) and two packs, as tables."""
    return _write_tokens


def _write_tokens(recipe: Recipe) -> None:
    storage = recipe.storage
    documents = runs.load_record(storage, f"documents/{recipe.dataset}")
    assert documents is not None
    columns = ["doc_id", "task", "source", "sample_ids", "error"]
    rows = [
        row
        for part in range(len(documents.parts))
        for row in storage.read_table(documents.path(part), columns).to_pylist()
    ]
    fine = [row for row in rows if row["error"] is None]
    for number, row in enumerate(fine):
        row |= {"num_tokens": 900 + number, "num_loss": 880, "num_pairs": 500_000}
        row["segments"] = [
            {"kind": "text", "loss": True, "text_ids": [1, 2]},
            {"kind": "image", "role": "target", "sampled": [1, 2], "flipped": [0, 1]},
        ]
    fine[0]["error"] = {"stage": "tokenize", "type": "text_too_long", "message": EVIL}
    tokens = _write(storage, "tokens/mixed-256", rows, TOKENS, "doc_id", (documents,), {})
    planned = [
        {"row": i, "doc_id": row["doc_id"], "copy": 0, "pack": i % 2, "position": i // 2}
        for i, row in enumerate(fine[1:])
    ]
    files = []
    for number, half in enumerate((planned[:3], planned[3:])):
        plan = pa.Table.from_pylist(half, schema=PLAN)
        files.append(f"packs/mixed-256/v/plan/part-{number:06d}.parquet")
        storage.write_part(files[-1], plan, PLAN, "row")
    facts = {
        "plan": files,
        "token_cap": 5_000,
        "budget": 2.0,
        "strategy": "fixed_compute",
        "level": 256,
        "lower_bound": 2,
        "rejected": {"over_token_cap": 1},
    }
    numbers = {"shard": "shard-000000.tar", "offset": 0, "length": 512, "sha256": ""}
    packs = [
        numbers | {"pack": i, "num_tokens": 4_000 + i, "cost": 1.9 + i / 20, "num_documents": 3}
        for i in range(2)
    ]
    _write(storage, "packs/mixed-256", packs, PACK_INDEX, "pack", (tokens,), facts)


@pytest.fixture
def write_frames() -> Callable[..., TableRecord]:
    """Writes ``frames/<dataset>-256`` of the samples that are kept, by their classes over time."""
    return _write_frames


def _write_frames(
    recipe: Recipe,
    classes: Sequence[str],
    errors: Mapping[str, dict[str, str]] | None = None,
    times_s: Sequence[float] | None = None,
) -> TableRecord:
    """Candidates of objects and cuts are kept; the clips of ``errors`` have failed without any."""
    storage, errors = recipe.storage, errors or {}
    decisions = runs.load_record(storage, f"decisions/{recipe.dataset}")
    assert decisions is not None
    buffer = io.BytesIO()
    Image.new("RGB", (256, 192), (40, 90, 160)).save(buffer, "JPEG")
    kept = {"width": 256, "height": 192, "cropped": 0.1, "image": buffer.getvalue()}
    candidates = []
    for number, class_ in enumerate(classes):
        one: dict[str, Any] = {
            "timestamp_s": times_s[number] if times_s else 2.0 * number,
            "class": class_,
            "evidence": f"it is {class_}: {EVIL}",
            "kept": class_ in ("object", "cut"),
            "flow": [float(number), -float(number)] * 64,
        }
        candidates.append(one | (kept | {"rank": number} if one["kept"] else {}))
    rows = []
    for part in range(len(decisions.parts)):
        for row in storage.read_table(decisions.path(part)).to_pylist():
            if row["status"] != "kept":
                continue
            error = errors.get(row["sample_id"])
            told = {
                "candidates": candidates,
                "num_candidates": len(candidates),
                "num_kept": sum(one["kept"] for one in candidates),
            }
            rows.append({"sample_id": row["sample_id"], "error": error} | ({} if error else told))
    return _write(storage, f"frames/{recipe.dataset}-256", rows, FRAMES, "sample_id", (), {})


def _write(
    storage: Storage,
    table: str,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    key: str,
    inputs: tuple[TableRecord, ...],
    facts: dict[str, Any],
) -> TableRecord:
    written = pa.Table.from_pylist(rows, schema=schema)
    storage.write_part(f"{table}/v/part-00000.parquet", written, schema, key)
    part = Part("v/part-00000.parquet", len(rows))
    record = TableRecord(table, f"{table}-1", "spec", key, (part,), facts)
    runs.finish(storage, record, {}, inputs, time.time())
    return record


PACKABLE = {
    "tokenizer_id": "t",
    "vocabulary_id": "v",
    "num_codes": 64,
    "text_vocab_size": 100,
    "level": 256,
}
"""Facts of the tokens that `token_table` writes."""


@pytest.fixture
def token_table() -> Callable[..., TableRecord]:
    """Writes a table of tokens that can be packed: (task, segments) by doc_id."""
    return _token_table


def _token_table(
    storage: Storage,
    name: str,
    documents: Mapping[str, tuple[str, Sequence[Segment]]],
    part_rows: int = 40,
    **facts: Any,
) -> TableRecord:
    table, version, parts = f"tokens/{name}", runs.version_of(name.ljust(32, "0")), []
    schema = pa.schema([field.remove_metadata() for field in TOKENS])
    rows = [
        {
            "doc_id": doc_id,
            "task": task,
            "source": name,
            "sample_ids": [doc_id],
            "segments": [_segment(segment) for segment in segments],
            **count(segments)._asdict(),
        }
        for doc_id, (task, segments) in documents.items()
    ]
    for number, start in enumerate(range(0, len(rows), part_rows)):
        part = pa.Table.from_pylist(rows[start : start + part_rows], schema=schema)
        file = f"{version}/part-{number:05d}.parquet"
        storage.write_part(f"{table}/{file}", part, TOKENS, "doc_id")
        parts.append(Part(file, len(part)))
    spec = name.ljust(32, "0")
    record = TableRecord(table, spec, spec, "doc_id", tuple(parts), PACKABLE | facts)
    runs.save_record(storage, record)
    return record


def _segment(of: Segment) -> dict[str, Any]:
    if isinstance(of, Text):
        return {"kind": "text", "loss": of.loss, "text_ids": of.ids.tolist()}
    return {
        "kind": "image",
        "role": of.role,
        "loss": of.loss,
        "schedule": of.schedule,
        "num_scales": of.num_scales,
        "input_codes": of.input_codes.tolist(),
        "target_codes": of.target_codes.tolist(),
    }
