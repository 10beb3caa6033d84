import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from infra import layout, pixels, runs
from infra.config import ConfigError
from infra.pixels import encode_jpeg
from infra.schedules import SCHEDULES, nearest
from infra.schema import DOCUMENTS
from packing import members
from tokenize_offline import checkpoint, text
from tokenize_offline.codes import extract, reduce_by_area
from tokenize_offline.correction import Correction
from tokenize_offline.extract_codes import ExtractCodes
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.photographs import Photograph, whole

END = 151_643


def words(content: str, loss: bool = True) -> dict[str, Any]:
    return {"kind": "text", "text": content, "loss": loss, "sample_id": "s"}


def picture(photo: Photograph, level: int = 256, **changes: Any) -> dict[str, Any]:
    _, rgb = whole(photo, level)
    segment = {"kind": "image", "image": encode_jpeg(rgb), "role": "target", "loss": True}
    return segment | {"sample_id": photo.name} | changes


def table(
    *documents: list[dict[str, Any]] | None, errors: dict[int, Any] | None = None
) -> pa.Table:
    rows = [
        {
            "doc_id": f"d{row}",
            "task": "t2i",
            "source": "test",
            "segments": segments,
            "error": (errors or {}).get(row),
        }
        for row, segments in enumerate(documents)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


@pytest.fixture(scope="module")
def operator() -> ExtractCodes:
    return ExtractCodes()


def test_documents_become_token_rows(operator: ExtractCodes, photographs: list[Photograph]) -> None:
    batch = table(
        [words("a woman in an orange suit"), picture(photographs[0])],
        [picture(photographs[1]), words("a cat")],
        [picture(photographs[2], role="condition"), words("what is it?", loss=False)],
    )
    out = operator(batch)
    assert out["error"].null_count == 3
    assert out["doc_id"].to_pylist() == ["d0", "d1", "d2"]
    rows = out.to_pylist()
    vocabulary = layout.Vocabulary(operator.facts["num_codes"])
    for row in rows:
        segments = [
            layout.Text(np.array(s["text_ids"]), s["loss"])
            if s["kind"] == "text"
            else layout.Image(
                s["schedule"],
                s["num_scales"],
                np.array(s["input_codes"]),
                np.array(s["target_codes"]),
                s["role"],
                s["loss"],
            )
            for s in row["segments"]
        ]
        counts = layout.layout([segments], vocabulary).counts
        assert counts == (row["num_tokens"], row["num_loss"], row["num_pairs"])
    first, second, third = (row["segments"] for row in rows)
    # The end of text stands alone after a picture or after text without loss.
    assert [s["kind"] for s in first] == ["text", "image", "text"]
    assert first[2]["text_ids"] == [END]
    assert second[1]["text_ids"] == [*text.load().encode("a cat"), END]
    assert [s["text_ids"] for s in third[1:]] == [text.load().encode("what is it?"), [END]]
    assert [s["loss"] for s in third[1:]] == [False, True]
    assert first[1]["schedule"] == nearest(*photographs[0].rgb.shape[:2]).index
    assert (first[1]["num_scales"], first[0]["schedule"]) == (12, -1)


def test_pictures_between_messages_keep_their_codes(
    operator: ExtractCodes, photographs: list[Photograph]
) -> None:
    """Messages become more or fewer segments than they were: pictures stay with their own."""
    shown, asked = picture(photographs[0], role="condition", loss=False), words("look", loss=False)
    answer = words("a cat", loss=True) | {"role": "assistant"}
    turns = [asked | {"role": "system"}, asked | {"role": "user"}]
    [row] = operator(table([*turns, shown, answer, shown, *turns, answer])).to_pylist()
    assert row["error"] is None
    kinds = [segment["kind"][0] + "-+"[segment["loss"]] for segment in row["segments"]]
    assert kinds == ["t-", "i-", "t-", "t+", "t-", "i-", "t-", "t+", "t-"]
    alone = operator(table([shown, words("a cat")])).to_pylist()[0]["segments"][0]
    for segment in row["segments"]:
        if segment["kind"] == "image":
            assert segment["input_codes"] == alone["input_codes"]
        else:
            assert segment["input_codes"] is None
    assert row["num_loss"] == 2 * (len(text.load().encode("a cat")) + 1)


def test_frames_of_one_clip_draw_noise_of_their_own(
    operator: ExtractCodes, photographs: list[Photograph]
) -> None:
    frame = picture(photographs[0])
    once, twice = operator(table([words("a"), frame], [frame, words("then"), frame])).to_pylist()
    alone = once["segments"][1]
    first, _, second, _ = twice["segments"]
    assert first["input_codes"] == alone["input_codes"]
    assert second["input_codes"] != alone["input_codes"]


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_rows_do_not_depend_on_their_neighbours(
    photographs: list[Photograph], batch_rows: int
) -> None:
    """Pictures of many schedules, both roles among them, in any order: as each one alone."""
    operator = ExtractCodes(batch_rows=batch_rows)
    turned = [Photograph(f"{p.name} turned", np.rot90(p.rgb).copy()) for p in photographs]
    documents = [
        [picture(photo, role=role, loss=role == "target"), words(photo.name)]
        for photo in [*photographs, *turned]
        for role in ("target", "condition")
    ]
    alone = [operator(table(document)).to_pylist()[0]["segments"] for document in documents]
    order = np.random.default_rng(batch_rows).permutation(len(documents))
    together = operator(table(*(documents[i] for i in order))).to_pylist()
    for place, i in enumerate(order):
        assert together[place]["segments"] == alone[i]


def test_another_batch_size_changes_next_to_no_code(
    operator: ExtractCodes, photographs: list[Photograph]
) -> None:
    batch = table([picture(photo) for photo in photographs])
    [one], [three] = (ExtractCodes(batch_rows=rows)(batch).to_pylist() for rows in (1, 3))
    pairs = [
        (np.array(a[name]), np.array(b[name]))
        for a, b in zip(one["segments"], three["segments"], strict=True)
        for name in ("input_codes", "target_codes")
        if a["kind"] == "image"
    ]
    assert np.mean(np.concatenate([a != b for a, b in pairs])) < 0.002


def test_nothing_is_drawn_for_a_condition(
    operator: ExtractCodes, tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    photo = photographs[1]
    segments = [picture(photo, role=role) for role in ("condition", "target", "condition")]
    [row] = operator(table(segments)).to_pylist()
    rgb = pixels.decode(segments[0]["image"]).rgb
    schedule = nearest(*rgb.shape[:2])
    plain, drawn = (
        extract(tokenizer, [rgb], [photo.name], schedule, 12, Correction(rate=rate))
        for rate in (0.0, 0.6)
    )
    for segment, encoded in zip(row["segments"], (plain, drawn, plain), strict=False):
        assert segment["input_codes"] == encoded.input_codes[0].tolist()
        assert segment["target_codes"] == encoded.target_codes[0].tolist()
    assert row["segments"][0]["input_codes"] == row["segments"][0]["target_codes"]
    assert row["segments"][0]["sampled"] == row["segments"][0]["flipped"] == [0] * 12
    [row] = ExtractCodes(condition_rate=0.6)(table(segments)).to_pylist()
    assert row["segments"][0]["input_codes"] == drawn.input_codes[0].tolist()


@pytest.mark.parametrize("level", [256, 512])
def test_counts_per_scale_are_those_of_the_codes(photographs: list[Photograph], level: int) -> None:
    operator = ExtractCodes(level=level, condition_rate=0.3)
    rows = operator(
        table(*([picture(p, level, role=r)] for p in photographs for r in ("target", "condition")))
    ).to_pylist()
    drawn: dict[str, float] = {"target": 0.0, "condition": 0.0}
    for row in rows:
        image, end = row["segments"]
        assert end["sampled"] is end["flipped"] is None
        grids = SCHEDULES[image["schedule"]].grids[: image["num_scales"]]
        changed = np.array(image["input_codes"]) != np.array(image["target_codes"])
        start = 0
        for (height, width), sampled, flipped in zip(
            grids, image["sampled"], image["flipped"], strict=True
        ):
            stop = start + height * width
            assert flipped == changed[start:stop].sum()
            assert flipped <= sampled <= height * width
            start = stop
        assert start == len(changed)
        drawn[image["role"]] += sum(image["sampled"]) / start / len(photographs)
    assert drawn == pytest.approx({"target": 0.6, "condition": 0.3}, abs=0.03)


def test_a_wide_codebook_goes_through_packs_to_the_vocabulary(
    tmp_path: Path, photographs: list[Photograph]
) -> None:
    torch.manual_seed(0)
    small = TokenizerSettings(
        num_codes=70_000,
        semantic_dim=2,
        pixel_dim=3,
        encoder_channels=(4, 4, 4),
        decoder_channels=(4, 4, 4),
        semantic_channels=(4, 4),
        teacher_dim=4,
    )
    path = tmp_path / "wide.safetensors"
    checkpoint.save(Tokenizer(small), path)
    operator = ExtractCodes(checkpoint=str(path))
    # The random network tells few codes apart: noise over many candidates reaches more of them.
    spread = replace(operator, top_k=512, temperature=1e6)
    out = spread(table([picture(photographs[0])]))
    codes = np.array(out.to_pylist()[0]["segments"][0]["input_codes"])
    assert codes.max() > 65_535
    documents = members.from_tokens(out)
    num_codes = operator.facts["num_codes"]
    [back] = members.decode(members.encode(documents, num_codes))
    laid = layout.layout([back.segments], layout.Vocabulary(num_codes))
    assert np.array_equal(laid.input_codes, codes)
    with pytest.raises(ValueError, match="the tokenizer has 65536"):
        members.encode(documents, 65_536)


def test_a_lower_level_reads_the_area_reduction(
    operator: ExtractCodes, tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    photo = photographs[0]
    schedule, _ = whole(photo, 512)
    segment = picture(photo, 512)
    codes = operator(table([segment])).to_pylist()[0]["segments"][0]["input_codes"]
    # The stored JPEG, not the original, is what is reduced.
    rgb = reduce_by_area(pixels.decode(segment["image"]).rgb, 2)
    expected = extract(tokenizer, [rgb], [photo.name], schedule, 12, Correction())
    assert codes == expected.input_codes[0].tolist()


def test_bad_documents_fail_alone(operator: ExtractCodes, photographs: list[Photograph]) -> None:
    good = picture(photographs[0])
    before = {"stage": "documents", "type": "corrupt", "message": "m"}
    out = operator(
        table(
            [good],
            [good, picture(photographs[0], image=b"not a picture")],
            [picture(photographs[0], image=encode_jpeg(np.zeros((250, 250, 3), np.uint8)))],
            [picture(photographs[0], role="other")],
            [],
            None,
            errors={5: before},
        )
    ).to_pylist()
    kinds = [row["error"] and row["error"]["type"] for row in out]
    assert kinds == [None, "unknown_format", "wrong_size", "bad_segment", "empty", "corrupt"]
    assert out[1]["error"]["stage"] == "codes"
    assert out[5]["error"] == before
    assert [row["segments"] is None for row in out] == [False] + [True] * 5
    assert [row["num_tokens"] is None for row in out] == [False] + [True] * 5


def test_nothing_is_upsampled(photographs: list[Photograph]) -> None:
    out = ExtractCodes(level=512)(table([picture(photographs[0], 256)])).to_pylist()[0]
    assert out["error"]["type"] == "too_small_for_level"


def test_an_empty_batch(operator: ExtractCodes) -> None:
    out = operator(table())
    assert out.num_rows == 0
    assert set(operator.writes.names) <= set(out.column_names)
    assert out.schema.field("segments").type == operator.writes.field("segments").type


def test_a_loaded_operator_is_pickled_without_its_weights(
    operator: ExtractCodes, photographs: list[Photograph]
) -> None:
    operator(table([picture(photographs[0])]))
    assert len(pickle.dumps(operator)) < 2_000
    assert pickle.loads(pickle.dumps(operator)) == operator


def test_identity_and_facts(operator: ExtractCodes) -> None:
    assert operator.facts == {
        "tokenizer_id": operator.tokenizer_id,
        "vocabulary_id": operator.vocabulary_id,
        "num_codes": 4096,
        "text_vocab_size": 152_064,
        "level": 256,
    }
    assert operator.identity != ExtractCodes(vocabulary="other/hub").identity


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="level is 300"):
        ExtractCodes(level=300)
    with pytest.raises(ConfigError, match="rate is 2"):
        ExtractCodes(rate=2)
    with pytest.raises(ConfigError, match="rate is -1"):
        ExtractCodes(condition_rate=-1.0)
    with pytest.raises(ConfigError, match="device is 'gpu'"):
        ExtractCodes(device="gpu")
    with pytest.raises(ValueError, match="num_codes is 4096: beside 2147480000 text ids"):
        _ = ExtractCodes(text_size=2_147_480_000).facts
    with pytest.raises(ConfigError, match="the vocabulary has 151665 ids"):
        ExtractCodes(text_size=1_000)(table([words("a")]))


def test_the_device_is_no_part_of_the_output() -> None:
    assert runs.describe(ExtractCodes(device="cpu")) == runs.describe(ExtractCodes())
    assert runs.describe(ExtractCodes(condition_rate=0.6)) != runs.describe(ExtractCodes())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_refused(photographs: list[Photograph]) -> None:
    with pytest.raises(ConfigError, match="there is no GPU"):
        ExtractCodes(device="cuda")(table([picture(photographs[0])]))
