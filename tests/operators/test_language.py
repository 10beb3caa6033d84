"""Languages of sentences in many scripts, and of what is none."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from infra.schema import ERROR_TYPE
from operators.language import UNKNOWN, Language

pytest.importorskip("py3langid")

SENTENCES = {
    "en": "The committee agreed that the report should be published before the end of the year.",
    "de": "Der Ausschuss war sich einig, dass der Bericht vor Jahresende erscheinen soll.",
    "fr": "Le comité a convenu que le rapport devait être publié avant la fin de l'année.",
    "es": "El comité acordó que el informe debía publicarse antes de fin de año.",
    "it": "Il comitato ha convenuto che la relazione dovesse essere pubblicata entro l'anno.",
    "pt": "O comité concordou que o relatório deveria ser publicado antes do final do ano.",
    "nl": "De commissie was het erover eens dat het verslag dit jaar moet verschijnen.",
    "pl": "Komisja zgodziła się, że sprawozdanie powinno zostać opublikowane przed końcem roku.",
    "ru": "Комитет согласился, что отчёт должен быть опубликован до конца года.",
    "zh": "委员会同意应在年底前发布该报告。",
    "ja": "委員会は年末までに報告書を公表することに同意した。",
    "ko": "위원회는 연말까지 보고서를 발표하기로 합의했다.",
    "hi": "समिति ने सहमति व्यक्त की कि रिपोर्ट वर्ष के अंत से पहले प्रकाशित होनी चाहिए।",
    "el": "Η επιτροπή συμφώνησε ότι η έκθεση πρέπει να δημοσιευθεί πριν από το τέλος του έτους.",
}


def batch(samples: list[Any], errors: dict[int, Any] | None = None) -> pa.Table:
    data = [s if s is None or isinstance(s, bytes) else json.dumps(s).encode() for s in samples]
    failed = [(errors or {}).get(row) for row in range(len(samples))]
    return pa.table(
        {"bytes": pa.array(data, pa.large_binary()), "error": pa.array(failed, ERROR_TYPE)}
    )


def languages(*texts: str) -> list[tuple[str, float]]:
    rows = Language()(batch([{"text": text} for text in texts])).to_pylist()
    return [(row["language"], row["language_score"]) for row in rows]


def test_sentences_are_told_apart() -> None:
    found = languages(*SENTENCES.values())
    assert [name for name, _ in found] == list(SENTENCES)
    assert min(score for _, score in found) > 0.5


def test_what_is_short_or_no_language_scores_low() -> None:
    found = languages("Hello", "x", "12345 67890", "?!", "😀😀", "--- * * * ---", "   .   ")
    assert max(score for _, score in found) < 0.3
    assert found[1] == found[3] == found[4] == (UNKNOWN, 0.0)


def test_a_chat_is_read_as_its_contents_and_long_texts_from_their_start() -> None:
    messages = [
        {"role": "user", "content": SENTENCES["fr"]},
        {"role": "assistant", "content": SENTENCES["fr"][::-1]},
    ]
    long = {"text": SENTENCES["de"] + " " + SENTENCES["ru"] * 200}
    rows = Language(max_chars=len(SENTENCES["de"]))(batch([{"messages": messages}, long]))
    assert rows["language"].to_pylist() == ["fr", "de"]


def test_rows_depend_on_nothing_but_their_text() -> None:
    texts = [*SENTENCES.values()] * 20
    operator = Language()
    alone = [operator(batch([{"text": text}])).to_pylist()[0] for text in texts[:14]] * 20
    together = operator(batch([{"text": text} for text in texts])).to_pylist()
    assert [row["language_score"] for row in together] == [row["language_score"] for row in alone]
    with ThreadPoolExecutor(4) as pool:
        tables = pool.map(operator, [batch([{"text": text}]) for text in texts])
        assert [table.to_pylist()[0] for table in tables] == alone


def test_bad_rows_fail_and_failed_rows_stay() -> None:
    before = {"stage": "probe", "type": "empty", "message": "m"}
    rows = Language()(batch([b"{", {"text": "Guten Tag."}, None], {2: before})).to_pylist()
    assert rows[0]["error"]["stage"] == "language"
    assert rows[1]["error"] is None
    assert rows[2]["error"] == before
    assert [row["language"] is None for row in rows] == [True, False, True]
    empty = Language()(batch([]))
    assert len(empty) == 0
    assert all(empty.schema.field(f.name).type == f.type for f in Language.writes)


def test_the_model_is_named_and_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Language()
    operator(batch([{"text": "a"}]))
    assert len(pickle.dumps(operator)) < 500
    assert pickle.loads(pickle.dumps(operator)) == operator
    here = operator.identity
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    assert operator.identity != here
    with pytest.raises(ValueError, match="max_chars is 0"):
        Language(max_chars=0)
