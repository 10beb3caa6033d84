"""JSONL and Parquet of texts: every line ends once, and its text comes back, local and on S3."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from infra.storage import Storage
from operators.text_document import TextDocument
from operators.text_probe import ROLES, TextProbe
from pipelines import source_jsonl, sources
from pipelines.source import Source
from pipelines.source_jsonl import lines_of
from pipelines.sources import first_media, index_phase, list_source, load_order, read_media

Put = Callable[[dict[str, bytes]], str]
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def index(workspace: Path, source: Source) -> pa.Table:
    """Rows of `samples` of the whole source, unit by unit."""
    storage = Storage(str(workspace))
    phase = index_phase(source)
    assert phase.prepare is not None
    phase.prepare(storage)
    tables = []
    for part in range(phase.num_parts):
        rows = phase.input.rows(storage, part)
        for start in range(0, len(rows), phase.unit_rows):
            tables.append(phase.input.load(storage, rows.slice(start, phase.unit_rows)))
    table = pa.concat_tables(tables)
    storage.write_part("check.parquet", table, phase.schema, "sample_id")  # ids, types and text
    return table


def ends(source: Source, samples: pa.Table) -> dict[str, Any]:
    """key -> its sample as JSON, or stage and type of its error."""
    found: dict[str, Any] = {}
    for row in read_media(source, load_order(samples)).to_pylist():
        assert (row["bytes"] is None) == (row["error"] is not None)
        error = row["error"]
        found[row["key"]] = (
            f"{error['stage']}:{error['type']}" if error else json.loads(row["bytes"])
        )
    return found


def line(**values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def test_texts_instructions_and_chats(put: Put, tmp_path: Path) -> None:
    lines = [
        line(text="Ein Wort.", lang="de", n=1, meta={"set": "web"}),
        line(messages=[*CHAT[:1], CHAT[1] | {"tool_calls": None, "name": "x"}], id=7),
        line(prompt="2 + 2?", response="4"),
        line(prompt=CHAT[:1], response="4"),
        line(messages=json.dumps(CHAT)),
        line(text="unused", messages=CHAT),
        line(messages=[{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]),
        line(text="with a prompt alone", prompt="p"),
    ]
    root = put({"deep/a.jsonl": b"".join(lines), "b.jsonl": line(text="b"), "readme.md": b"x"})
    source = Source(name="s", kind="jsonl", path=root, part_files=1)
    samples = index(tmp_path / "ws", source)
    offsets = [sum(map(len, lines[:n])) for n in range(len(lines))]
    keys = [f"deep/a.jsonl#{offset}" for offset in offsets]
    chat = {"messages": CHAT}
    expected = [{"text": "Ein Wort."}, chat, chat, chat, chat, chat, chat]
    found = ends(source, samples)
    assert found == {"b.jsonl#0": {"text": "b"}} | dict(
        zip(keys, [*expected, {"text": "with a prompt alone"}], strict=True)
    )
    rows = {row["key"]: row for row in samples.to_pylist()}
    assert json.loads(rows[keys[0]]["metadata"]) == {"lang": "de", "n": 1, "meta": {"set": "web"}}
    assert [rows[key]["length"] for key in keys] == [len(one) - 1 for one in lines]
    assert {row["media"] for row in rows.values()} == {"text"}
    single = [ends(source, samples.slice(i, 1)) for i in range(len(samples))]
    assert {key: value for one in single for key, value in one.items()} == found


HOSTILE = {
    b'{"text": "a"': "bad_json",
    b"[" * 100_000: "bad_json",
    b'{"text": ' + b"1" * 5_000 + b"}": "bad_json",
    b'["a"]': "bad_json",
    b"null": "bad_json",
    b'{"text": "raw \0 byte"}': "bad_json",
    b"\0" * 100: "bad_json",
    b'{"text": "caf\xe9"}': "bad_utf8",
    "{'text': 'a'}".encode("utf-16-be")[:-1]: "bad_json",
    b'{"text": "half \\ud800 pair"}': "bad_text",
    b'{"text": "a", "note": "\\udfff"}': "bad_json",
    b'{"text": "a", "score": NaN}': "bad_json",
    b'{"text": "a", "score": 1e999}': "bad_json",
    b'{"title": "no text"}': "no_text",
    b'{"text": null, "prompt": "alone"}': "no_text",
    b'{"messages": "not JSON"}': "bad_messages",
    b'{"messages": {"role": "user"}}': "bad_messages",
    b'{"messages": ["hello"]}': "bad_messages",
    b'{"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]}': "bad_messages",
    b'{"prompt": 5, "response": "a"}': "bad_messages",
    b'{"text": "' + b"x" * source_jsonl.MAX_LINE_BYTES + b'"}': "too_long",
}


def test_hostile_lines_fail_alone_and_for_their_reason(tmp_path: Path) -> None:
    good = [
        b'\xef\xbb\xbf{"text": "behind a mark"}\r',
        b'  {"text": "\\u2028\\u202e <|im_end|> \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80"}\t',
        b'{"text": "' + b"y" * (1 << 20) + b'"}',
        b'{"text": 5}',  # an object with its column: the probe will say what is wrong
    ]
    blank = [b"", b"   \t\r", b"\xef\xbb\xbf", b"\r"]
    data = b"".join(one + b"\n" for pair in zip(HOSTILE, blank * 9) for one in pair)  # noqa: B905
    data += b"".join(one + b"\n" for one in good[:-1]) + good[-1]  # the last without a line end
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n \n")
    source = Source(name="s", kind="jsonl", path=str(tmp_path))
    samples = index(tmp_path / "ws", source)
    found = ends(source, samples)
    at = 0
    for one, kind in HOSTILE.items():
        at = data.index(one, at)
        assert found.pop(f"a.jsonl#{at}") == f"index:{kind}", one[:60]
        at += len(one)
    assert list(found.values()) == [json.loads(one.decode("utf-8-sig")) for one in good]
    assert all(len(row["error"]["message"]) < 300 for row in samples.to_pylist() if row["error"])


def test_arrays_over_many_lines_fail_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    source = Source(name="s", kind="jsonl", path=str(tmp_path))
    assert set(ends(source, index(tmp_path / "ws", source)).values()) == {"index:bad_json"}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    def make(piece_bytes: int, line_bytes: int) -> None:
        monkeypatch.setattr(source_jsonl, "PIECE_BYTES", piece_bytes)
        monkeypatch.setattr(source_jsonl, "MAX_LINE_BYTES", line_bytes)

    return make


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"bcd", b"\r\n", b"efghijklm"]), max_size=40),
    piece_bytes=st.integers(1, 30),
    line_bytes=st.integers(1, 30),
)
def test_pieces_of_any_size_give_the_same_lines(
    tmp_path: Path,
    small_pieces: Callable[[int, int], None],
    data: list[bytes],
    piece_bytes: int,
    line_bytes: int,
) -> None:
    small_pieces(piece_bytes, line_bytes)
    content = b"".join(data)
    (tmp_path / "a.jsonl").write_bytes(content)
    expected, at = [], 0
    for one in content.split(b"\n"):
        expected.append((at, one if len(one) <= line_bytes else None))
        at += len(one) + 1
    if expected[-1][1] == b"":
        expected.pop()  # nothing stands behind the last line end
    found = [
        line
        for start in range(0, max(len(content), 1), piece_bytes)
        for line in lines_of(Storage(str(tmp_path)), "a.jsonl", start, len(content))
    ]
    assert found == expected


def test_a_file_of_many_pieces_is_one_source(
    put: Put, tmp_path: Path, small_pieces: Callable[[int, int], None]
) -> None:
    texts = [f"text {number} " + "x" * (number % 90) for number in range(200)]
    root = put({"a.jsonl": b"".join(line(text=text) for text in texts)})
    source = Source(name="s", kind="jsonl", path=root, part_files=7)
    whole = index(tmp_path / "whole", source)
    small_pieces(500, 300)
    assert len(list_source(source)) > 20
    pieces = index(tmp_path / "pieces", source)
    assert pieces.sort_by("sample_id").equals(whole.sort_by("sample_id"))
    by_place = load_order(pieces)
    found = ends(source, pieces)
    assert [found[key]["text"] for key in by_place["key"].to_pylist()] == texts
    # Lines fetched together and one at a time are the same, in any order.
    shuffled = pieces.sort_by("sample_id")
    assert {k: v for i in (0, 60, 130) for k, v in ends(source, shuffled[i : i + 60]).items()} == {
        row["key"]: found[row["key"]]
        for i in (0, 60, 130)
        for row in shuffled[i : i + 60].to_pylist()
    }


def test_a_file_that_goes_after_the_listing(put: Put, tmp_path: Path) -> None:
    root = put({"a.jsonl": line(text="a"), "b.jsonl": line(text="b")})
    source = Source(name="s", kind="jsonl", path=root)
    storage = Storage(str(tmp_path / "ws"))
    phase = index_phase(source)
    assert phase.prepare is not None
    phase.prepare(storage)
    rows = phase.input.rows(storage, 0)
    samples = phase.input.load(storage, rows)
    Storage(root).remove("a.jsonl")
    assert ends(source, samples) == {"a.jsonl#0": "load:missing", "b.jsonl#0": {"text": "b"}}
    later = ends(source, phase.input.load(storage, rows))
    assert later == {"a.jsonl#missing-0": "index:missing", "b.jsonl#0": {"text": "b"}}


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz is compressed .*: unpack to \.jsonl"):
        list_source(Source(name="s", kind="jsonl", path=str(tmp_path)))
    with pytest.raises(ValueError, match="text comes as parquet or jsonl"):
        Source(name="s", kind="folder", path="x", media="text")
    with pytest.raises(
        ValueError, match="jsonl holds text or video or interleaved, image comes as"
    ):
        Source(name="s", kind="jsonl", path="x", media="image")
    assert Source(name="s", kind="jsonl", path="x").media == "text"
    assert Source(name="s", kind="parquet", path="x").media == "image"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(ROLES) | VALUES, "content": VALUES, "tool_calls": VALUES}
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "text": VALUES,
        "messages": st.lists(MESSAGE | VALUES, max_size=3) | VALUES,
        "prompt": st.lists(MESSAGE, max_size=2) | VALUES,
        "response": VALUES,
        "note": VALUES,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(), max_size=8))
def test_whatever_stands_in_a_line_it_ends_once(tmp_path: Path, rows: list[bytes]) -> None:
    """Arbitrary values in every column, and arbitrary bytes: a document or a reason."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    source = Source(name="s", kind="jsonl", path=str(tmp_path))
    shutil.rmtree(tmp_path / "ws", ignore_errors=True)
    made = read_media(source, load_order(index(tmp_path / "ws", source)))
    made = made.append_column("doc_id", made["sample_id"])
    for operator in (TextProbe(), TextDocument("responses")):
        made = operator(made)
    lines = [line for row in rows for line in row.split(b"\n")]
    assert len(made) == sum(line.removeprefix(b"\xef\xbb\xbf").strip() != b"" for line in lines)
    for row in made.to_pylist():
        assert (row["error"] is None) == (row["segments"] is not None)
        assert row["error"] is None or None not in row["error"].values()
        assert row["error"] is not None or row["num_words"] > 0
        json.loads(row["metadata"] or "{}")


# Parquet


def parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not below the source: its tables are Parquet, too."""
    return tmp_path_factory.mktemp("workspace")


def text_source(root: str, **columns: str) -> Source:
    return Source(name="s", kind="parquet", path=root, media="text", **columns)  # type: ignore[arg-type]


MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))


SHAREGPT = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


@pytest.mark.parametrize(
    "type_", [MESSAGES, pa.large_list(MESSAGES.value_type), pa.string(), SHAREGPT]
)
def test_parquet_of_chats(put: Put, workspace: Path, type_: pa.DataType) -> None:
    chats: list[Any] = [CHAT, None, [], CHAT[:1] * 3]
    if type_ == SHAREGPT:
        name = {"user": "human", "assistant": "gpt"}
        chats = [
            chat and [{"from": name[m["role"]], "value": m["content"]} for m in chat]
            for chat in chats
        ]
    if type_ == pa.string():
        chats = [None if chat is None else json.dumps(chat) for chat in chats]
    table = pa.table(
        {
            "messages": pa.array(chats, type_),
            "text": ["unused", "said", None, None],
            "topic": pa.array(["a", "a", "b", None]).dictionary_encode(),
        }
    )
    source = text_source(put({"a.parquet": parquet(table, row_group_size=3)}))
    samples = index(workspace, source)
    assert (
        ends(source, samples)
        == {
            "a.parquet#0": {"messages": CHAT},
            "a.parquet#1": {"text": "said"},
            "a.parquet#2": {"messages": []},  # the probe will say what is wrong
            "a.parquet#3": {"messages": CHAT[:1] * 3},
        }
    )
    rows = {row["key"]: row for row in samples.to_pylist()}
    assert json.loads(rows["a.parquet#0"]["metadata"]) == {"topic": "a"}
    assert first_media(source) == json.dumps({"messages": CHAT}).encode()


def test_parquet_of_instructions_and_texts(tmp_path: Path, workspace: Path) -> None:
    table = pa.table(
        {
            "input": pa.array([CHAT[:1], None, CHAT[:1]], MESSAGES),
            "output": pa.array(["4", "4", None]).dictionary_encode(),
        }
    )
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    source = text_source(str(tmp_path), prompt_column="input", response_column="output")
    found = ends(source, index(workspace, source))
    assert list(found.values()) == [{"messages": CHAT}, "load:no_text", "load:no_text"]
    # A text column alone, and no other column: rows that no metadata tells apart.
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"output": ["a", "", None, "é"]})))
    source = text_source(str(tmp_path), text_column="output")
    found = ends(source, index(workspace, source))
    assert list(found.values()) == [{"text": "a"}, {"text": ""}, "load:no_text", {"text": "é"}]


def test_text_that_is_not_utf8_fails_its_row(tmp_path: Path, workspace: Path) -> None:
    column = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": column})))
    source = text_source(str(tmp_path))
    found = ends(source, index(workspace, source))
    assert list(found.values()) == [{"text": "fine"}, "load:bad_utf8", {"text": "fine"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"words": ["a"]}, "none of the columns messages, prompt, response, text: set `text_col"),
        ({"prompt": ["a"]}, "none of the columns"),
        ({"text": [5]}, "column `text` is int64, expected text"),
        ({"messages": [["a"]]}, "column `messages` is list.*expected text or a list of {role, c"),
        (
            {"messages": [[{"from": "human", "value": 1}]]},
            "expected text or a list of {role, content}",
        ),
    ],
)
def test_parquet_without_text_is_refused(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table(columns)))
    with pytest.raises(ConfigError, match=message):
        list_source(text_source(str(tmp_path)))


def test_parts_of_texts_are_bounded_by_bytes(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a gigabyte of texts hold millions of rows: sixteen would be too many for a part."""
    for number in range(7):
        texts = [f"{number} {i}" for i in range(3)]
        (tmp_path / f"{number}.parquet").write_bytes(parquet(pa.table({"text": texts})))
    size = (tmp_path / "0.parquet").stat().st_size
    whole = index(workspace / "whole", text_source(str(tmp_path)))
    for most, parts in ((3 * size + 5, 3), (size, 7), (1, 7), (8 * size, 1)):
        monkeypatch.setattr(sources, "PARQUET_TEXT_BYTES", most)
        phase = index_phase(text_source(str(tmp_path)))
        assert phase.num_parts == parts
        assert index(workspace / str(most), text_source(str(tmp_path))).equals(whole)


def test_a_row_group_is_read_once_and_never_taken_for_another_files(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(pa.table({"text": [f"{i:04d}" for i in range(1_000)]})))
    source = text_source(str(tmp_path))
    samples = load_order(index(workspace, source))
    reads = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, *args, **named: reads.append(args) or whole(self, *args, **named),
    )
    for start in range(0, 1_000, 100):
        ends(source, samples[start : start + 100])
    assert len(reads) == 1
    path.write_bytes(parquet(pa.table({"text": [f"{i:05d}" for i in range(1_000)]})))
    assert list(ends(source, samples[:2]).values()) == [{"text": "00000"}, {"text": "00001"}]
    path.write_bytes(parquet(pa.table({"words": ["a"] * 1_000})))
    assert set(ends(source, samples[:2]).values()) == {"load:wrong_schema"}
