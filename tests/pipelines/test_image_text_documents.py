"""From kept samples to tokens: captioning documents, text in pictures, inversion, copies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from infra import layout, runs
from infra.runs import Part, TableRecord
from infra.schema import DOCUMENTS, ERROR, TOKENS, doc_id, uniform
from infra.storage import Storage
from operators.image_text import ImageText
from pipelines.balance import Balance
from pipelines.decide import Decide, Decision, decide
from pipelines.decided import decided
from pipelines.inputs import SAMPLES_PER_MEDIA_PART, DocumentInput, KeptInput, dataset_parts
from pipelines.job import Job
from pipelines.phase import Phase, Stage, check_columns
from pipelines.recipe import Recipe
from tokenize_offline.extract_codes import ExtractCodes

Run = Callable[[Storage, Phase], TableRecord]
PROMPTS = ("Describe the picture.", "What is in the picture?")
SEED = 4


def document_phase(recipe: Recipe, decisions: TableRecord, ocr: TableRecord, share: float) -> Phase:
    """Documents of the kept samples, some of them turned over, with the text in the picture."""
    storage = recipe.storage
    samples, captions = (
        runs.load_record(storage, table) for table in ("samples/some", "captions/mixed")
    )
    assert samples is not None
    assert captions is not None
    parts = dataset_parts(recipe.sources, (samples,), SAMPLES_PER_MEDIA_PART)
    operator = ImageText(prompts=PROMPTS, text=("{text}", " It reads: {ocr_text}"))
    phase = Phase(
        table="documents/mixed",
        key="doc_id",
        schema=DOCUMENTS,
        input=KeptInput(
            parts,
            decisions,
            captions,
            document=("mixed", "t2i"),
            inversion=share,
            inversion_seed=SEED,
            extra=(ocr,),
            extra_columns=("ocr_text",),
        ),
        num_parts=len(parts),
        stages=(Stage((operator,)),),
        spec={"dataset": "mixed"},
        value_inputs=(samples, captions, ocr),
        row_inputs=(decisions,),
        row_filter=f"t2i {share} {SEED}",
    )
    check_columns(phase)
    return phase


def token_phase(documents: TableRecord) -> Phase:
    return Phase(
        table="tokens/mixed-256",
        key="doc_id",
        schema=TOKENS,
        input=DocumentInput(documents),
        num_parts=len(documents.parts),
        stages=(Stage((ExtractCodes(),)),),
        spec={},
        value_inputs=(documents,),
    )


@pytest.fixture
def ocr(curated: Recipe) -> TableRecord:
    """Text read in the first pictures of every part; none in the next, and the rest not seen."""
    storage = curated.storage
    samples = runs.load_record(storage, "samples/some")
    assert samples is not None
    schema = pa.schema([("sample_id", pa.string()), ("ocr_text", pa.string()), ERROR])
    parts = []
    for number in range(len(samples.parts)):
        ids = storage.read_table(samples.path(number))["sample_id"].to_pylist()[:4]
        texts = [f"EXIT {{{number}}}" if n < 3 else None for n in range(len(ids))]
        table = pa.Table.from_pylist(
            [{"sample_id": i, "ocr_text": t} for i, t in zip(ids, texts, strict=True)],
            schema=pa.schema([field.remove_metadata() for field in schema]),
        )
        file = f"{runs.version_of('ocr')}/part-{number:05d}.parquet"
        storage.write_part(f"scores/some/ocr/{file}", table, schema, "sample_id")
        parts.append(Part(file, len(ids)))
    return TableRecord("scores/some/ocr", "ocr", "ocr", "sample_id", tuple(parts))


def rows_of(storage: Storage, record: TableRecord) -> dict[str, dict]:
    tables = [storage.read_table(record.path(part)) for part in range(len(record.parts))]
    return {row[record.key]: row for row in pa.concat_tables(tables).to_pylist()}


def test_captioning_documents_have_loss_on_their_text_alone(
    curated: Recipe, ocr: TableRecord, run_alone: Run
) -> None:
    storage = curated.storage
    decisions = runs.load_record(storage, "decisions/mixed")
    assert decisions is not None
    documents = run_alone(storage, document_phase(curated, decisions, ocr, 0.5))
    made = rows_of(storage, documents)
    read = {row["sample_id"]: row["ocr_text"] for row in rows_of(storage, ocr).values()}
    captions = runs.load_record(storage, "captions/mixed")
    assert captions is not None
    told = {row["sample_id"]: row["text"] for row in rows_of(storage, captions).values()}
    for id_, row in made.items():
        [sample] = row["sample_ids"]
        assert row["task"] == ("i2t" if uniform(sample, SEED) < 0.5 else "t2i")
        assert id_ == doc_id("mixed", row["task"], [sample])
        if row["error"] is None:
            last = f" It reads: {read[sample]}" if read.get(sample) else ""
            [text] = [s for s in row["segments"] if s["kind"] == "text" and s["loss"]]
            assert text["text"] == told[sample] + last
    tokens = rows_of(storage, run_alone(storage, token_phase(documents)))
    assert tokens.keys() == made.keys()
    fine = [row for row in tokens.values() if row["error"] is None]
    assert {row["task"] for row in fine} == {"t2i", "i2t"}
    vocabulary = layout.Vocabulary(ExtractCodes().facts["num_codes"])
    for row in fine:
        assert row["task"] == made[row["doc_id"]]["task"]
        segments = [as_layout(segment) for segment in row["segments"]]
        sequence = layout.layout([segments], vocabulary)
        losses = [isinstance(segment, layout.Text) and segment.loss for segment in segments]
        counts = (row["num_tokens"], row["num_loss"], row["num_pairs"])
        assert counts == tuple(layout.count(segments))
        assert row["num_loss"] == int((sequence.targets >= 0).sum())
        if row["task"] == "i2t":
            image, prompt, text = segments
            assert isinstance(image, layout.Image)
            assert isinstance(prompt, layout.Text)
            assert isinstance(text, layout.Text)
            assert (image.role, image.has_loss, losses) == (
                "condition",
                False,
                [False, False, True],
            )
            assert row["num_loss"] == len(text.ids)
            assert row["num_tokens"] == image.num_codes + 2 + len(prompt.ids) + len(text.ids)
            # Each text id, with <|endoftext|> last, is predicted by the position before it.
            assert np.array_equal(sequence.targets[-len(text.ids) - 1 : -1], text.ids)
            assert (sequence.targets[: -len(text.ids) - 1] < 0).all()


def as_layout(segment: dict) -> layout.Text | layout.Image:
    if segment["kind"] == "text":
        return layout.Text(np.array(segment["text_ids"], np.int32), segment["loss"])
    names = ("schedule", "num_scales", "input_codes", "target_codes", "role", "loss")
    return layout.Image(*(segment[name] for name in names))


def test_other_copies_or_more_inversion_leave_the_other_documents_alone(
    curated: Recipe, ocr: TableRecord, run_alone: Run
) -> None:
    storage = curated.storage
    parts = decided(storage, "mixed", curated.sources).parts

    def judged(copies: int) -> TableRecord:
        balance = Balance(by="format", target={"PNG": 0.4}, max_copies=copies)
        return decide(storage, Decision("mixed", parts, Decide(balance=balance)))

    def to_compute(phase: Phase, previous: TableRecord) -> set[str]:
        """Ids that a run of the phase over the previous version would compute anew."""
        assert phase.row_spec == previous.row_spec
        assert phase.fingerprint != previous.fingerprint
        job = Job(storage, phase, "unused", previous)
        fresh = [job.split(part).rows for part in range(phase.num_parts)]
        return {id_ for rows in fresh for id_ in rows["doc_id"].to_pylist()} - failed

    once = judged(1)
    kept = {id_ for id_, row in rows_of(storage, once).items() if row["status"] == "kept"}
    documents = run_alone(storage, document_phase(curated, once, ocr, 0.1))
    # What failed is tried again by every run.
    failed = {id_ for id_, row in rows_of(storage, documents).items() if row["error"]}
    turned = document_phase(curated, once, ocr, 0.6)
    changed = [id_ for id_ in kept if 0.1 <= uniform(id_, SEED) < 0.6]
    assert changed
    assert to_compute(turned, documents) == {doc_id("mixed", "i2t", [i]) for i in changed}
    more = judged(3)
    rows = rows_of(storage, more)
    assert max(row["copies"] for row in rows.values()) == 3
    added = {id_ for id_, row in rows.items() if row["status"] == "kept"} - kept
    phase = document_phase(curated, more, ocr, 0.1)
    task = {id_: "i2t" if uniform(id_, SEED) < 0.1 else "t2i" for id_ in added}
    assert to_compute(phase, documents) == {doc_id("mixed", task[i], [i]) for i in added}
    # Tokens of documents that were taken over are taken over in turn.
    tokens = replace(documents, row_spec=token_phase(documents).row_spec)
    newer = replace(documents, fingerprint=phase.fingerprint)
    assert to_compute(token_phase(newer), tokens) == set()
