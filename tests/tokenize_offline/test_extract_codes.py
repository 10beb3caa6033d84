import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import layout
from infra.config import ConfigError
from infra.pixels import encode_jpeg
from infra.schedules import nearest
from infra.schema import DOCUMENTS
from tokenize_offline import text
from tokenize_offline.codes import extract, reduce_by_area
from tokenize_offline.correction import Correction
from tokenize_offline.extract_codes import ExtractCodes
from tokenize_offline.model import Tokenizer
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


def test_rows_do_not_depend_on_their_neighbours(
    operator: ExtractCodes, photographs: list[Photograph]
) -> None:
    documents = [[words(photo.name), picture(photo)] for photo in photographs]
    together = operator(table(*documents)).to_pylist()
    for row, document in enumerate(documents):
        alone = operator(table(document)).to_pylist()[0]
        assert alone["segments"] == together[row]["segments"]


def test_a_lower_level_reads_the_area_reduction(
    operator: ExtractCodes, tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    photo = photographs[0]
    schedule, _ = whole(photo, 512)
    segment = picture(photo, 512)
    codes = operator(table([segment])).to_pylist()[0]["segments"][0]["input_codes"]
    from infra import pixels  # the stored JPEG, not the original, is what is reduced

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
    with pytest.raises(ConfigError, match="the vocabulary has 151665 ids"):
        ExtractCodes(text_size=1_000)(table([words("a")]))
