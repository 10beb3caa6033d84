"""Sources of videos and of web documents: what is listed, under which ids, and where it lies."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from infra.storage import Storage
from pipelines.inputs import KeptInput, SampleInput, dataset_parts
from pipelines.source import Source
from pipelines.sources import IndexInput, index_phase, list_source, load_order, read_media

Put = Callable[[dict[str, bytes]], str]


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not below the source: its tables are Parquet, too."""
    return tmp_path_factory.mktemp("workspace")


def index(workspace: Path, source: Source) -> pa.Table:
    """All rows of a source's samples, as the phase would store them."""
    storage = Storage(str(workspace))
    phase = index_phase(source)
    assert phase.prepare is not None
    phase.prepare(storage)
    assert isinstance(phase.input, IndexInput)
    parts = [phase.input.rows(storage, part) for part in range(phase.num_parts)]
    table = pa.concat_tables([phase.input.load(storage, rows) for rows in parts])
    storage.write_part("check.parquet", table, phase.schema, "sample_id")
    return table


def listed(source: Source, samples: pa.Table) -> dict[str, Any]:
    """key -> (uri, offset, length, start, end) of its file, or the type of its error."""
    read = read_media(source, load_order(samples))
    assert read.column_names == [*samples.column_names, "file"]
    found: dict[str, Any] = {}
    for row in read.to_pylist():
        file = row["file"]
        assert (file is None) == (row["error"] is not None)
        if file is not None:
            assert Storage(file["root"]).open(file["uri"]).read(0) == b""
            assert file["stream"] == source.video_stream
            names = ("uri", "offset", "length", "start_s", "end_s")
            found[row["key"]] = tuple(file[name] for name in names)
        else:
            found[row["key"]] = row["error"]["type"]
    return found


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def test_folder(put: Put, workspace: Path) -> None:
    files = {
        "a.mp4": b"abc",
        "a.txt": b"A given caption.",
        "deep/b.WEBM": b"webm",
        "deep/b.json": b'{"caption": "Other.", "aesthetic": 4.5}',
        "empty.mkv": b"",
        "bad.mov": b"x",
        "bad.json": b"{",
        "picture.jpg": b"",
        "moving.gif": b"",
        ".hidden.mp4": b"",
    }
    source = Source(name="s", kind="folder", path=put(files), media="video")
    samples = index(workspace, source)
    assert listed(source, samples) == {
        "a.mp4": ("a.mp4", 0, None, None, None),
        "deep/b.WEBM": ("deep/b.WEBM", 0, None, None, None),
        "empty.mkv": ("empty.mkv", 0, None, None, None),  # the decoder says what is wrong
        "bad.mov": "bad_sidecar",
    }
    rows = {row["key"]: row for row in samples.to_pylist()}
    assert rows["a.mp4"]["caption"] == "A given caption."
    assert json.loads(rows["deep/b.WEBM"]["metadata"]) == {"aesthetic": 4.5}
    assert set(samples["media"].to_pylist()) == {"video"}


def test_tars(put: Put, workspace: Path) -> None:
    members = {
        "0.mp4": b"first",
        "0.txt": b"said",
        "0.jpg": b"its thumbnail",
        "1.json": b'{"caption": "lost"}',
        "2.mkv": b"a",
        "2.mp4": b"b",
    }
    source = Source(
        name="s", kind="webdataset", path=put({"x/0.tar": tar_of(members)}), media="video"
    )
    found = listed(source, index(workspace, source))
    second = found.pop("x/0.tar/2")
    assert found.pop("x/0.tar/0") == ("x/0.tar", 512, 5, None, None)
    assert found.pop("x/0.tar/1") == "no_video"
    assert list(found.values()) == ["duplicate_key"]
    assert second[2] == 1


ROWS: list[dict[str, Any]] = [
    {"video": "v/a.mp4", "start": 1.0, "end": 2.5, "caption": "One.", "motion": 7.5},
    {"video": "v/a.mp4", "start": 1.0, "end": 2.5, "caption": "One again.", "motion": 7.5},
    {"video": "v/a.mp4", "start": 2.5, "end": None, "caption": None, "motion": None},
    {"video": "v/b.mp4", "start": None, "end": None, "caption": "", "motion": 0.0},
    {"video": "v/b.mp4", "start": 3.0, "end": 3.0, "caption": "No time.", "motion": 1.0},
    {"video": None, "start": 3.0, "end": 4.0, "caption": "No file.", "motion": 1.0},
    {"video": "v/gone.mp4", "start": 3.0, "end": 4.0, "caption": "Gone.", "motion": 1.0},
    {"video": "http://x/y.mp4", "start": None, "end": None, "caption": "Web.", "motion": 1.0},
]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    lines = [",".join(rows[0])]
    lines += [",".join("" if cell is None else str(cell) for cell in r.values()) for r in rows]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_tables_point_into_videos(put: Put, workspace: Path, kind: Any) -> None:
    table = {
        "parquet": parquet(ROWS),
        "jsonl": b"\n".join(json.dumps(row).encode() for row in ROWS),
        "csv": as_csv(ROWS),
    }[kind]
    root = put({f"t.{kind}": table, "v/a.mp4": b"a", "v/b.mp4": b""})
    source = Source(name="s", kind=kind, path=root, media="video")
    samples = index(workspace, source)
    ends = listed(source, samples)
    rows: list[dict[str, Any]] = samples.to_pylist()
    assert [ends[row["key"]] for row in rows] == [
        ("v/a.mp4", 0, None, 1.0, 2.5),
        ("v/a.mp4", 0, None, 1.0, 2.5),
        ("v/a.mp4", 0, None, 2.5, None),
        ("v/b.mp4", 0, None, None, None),
        "bad_span",
        "no_video",
        "missing",
        "bad_uri",
    ]
    places = [row["key"].removeprefix(f"t.{kind}#").partition("&")[0] for row in rows]
    if kind == "jsonl":
        assert [table[int(place) :][:9] for place in places] == [b'{"video":'] * len(ROWS)
    else:
        assert places == [str(number) for number in range(len(ROWS))]
    assert [row["key"].partition("&")[2] for row in rows[:4]] == [
        "t=1.000,2.500",
        "t=1.000,2.500",
        "t=2.500",
        "",
    ]
    assert [row["caption"] for row in rows[:4]] == ["One.", "One again.", None, None]
    assert [json.loads(row["metadata"]) for row in rows] == [
        {"motion": row["motion"]} for row in ROWS
    ]


def test_files_elsewhere_in_the_store(put: Put, workspace: Path) -> None:
    root = put({"films/a.mp4": b"a", "tables/t.jsonl": b""})
    rows = [{"film": f"{root}/films/a.mp4", "span": "[0:01, 0:02.5]"}, {"film": "../films/a.mp4"}]
    Storage(root).write("tables/t.jsonl", b"\n".join(json.dumps(r).encode() for r in rows[:1]))
    source = Source(
        name="s",
        kind="jsonl",
        path=f"{root}/tables",
        media="video",
        video_column="film",
        start_column="span",
        end_column="span",
    )
    [(key, file)] = listed(source, index(workspace, source)).items()
    assert key == "t.jsonl#0&t=1.000,2.500"
    assert file == ("a.mp4", 0, None, 1.0, 2.5)
    assert index(workspace, source)["uri"].to_pylist() == [f"{root}/films/a.mp4"]


def test_streams_sources_and_spans_have_ids_of_their_own(put: Put, workspace: Path) -> None:
    root = put({"a.mp4": b"a", "t.csv": b"video,start,end\na.mp4,0,2\na.mp4,2,4\n"})
    ids: list[str] = []
    for name in ("x", "y"):
        for stream in (0, 1):
            for kind in ("folder", "csv"):
                source = Source(name=name, kind=kind, path=root, media="video", video_stream=stream)
                ids += index(workspace, source)["sample_id"].to_pylist()
    assert len(set(ids)) == len(ids) == 12
    again = Source(name="x", kind="folder", path=root, media="video")
    assert index(workspace, again)["sample_id"].to_pylist() == ids[:1]


def test_options_of_the_medium_alone_change_what_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.mp4").write_bytes(b"")

    def made(**options: Any) -> str:
        return index_phase(Source(name="s", kind="folder", path=str(tmp_path), **options)).row_spec

    assert made() == made(video_column="x", video_stream=1, texts_column="y")
    videos = [made(media="video"), made(media="video", video_stream=1), made()]
    videos.append(made(media="video", start_column="from"))
    assert len(set(videos)) == 4
    assert made(media="video") == made(media="video", text_column="x", images_column="y")


def test_csv_as_it_comes(put: Put, workspace: Path) -> None:
    rows = [
        'video\tcaption\tscore\tid\t"a\tname"',
        'a.mp4\t"two\nlines"\t4.50\t007\tx',
        "",
        "a.mp4\tshort",
        "a.mp4\tfine\tnan\t-3\t1e400",
    ]
    data = b"\xef\xbb\xbf" + "\n".join(rows).encode() + b"\na.mp4\t\xff\t1\t2\t3\n"
    source = Source(name="s", kind="csv", path=put({"t.tsv": data, "a.mp4": b"a"}))
    assert source.media == "video"
    samples = {row["key"]: row for row in index(workspace, source).to_pylist()}
    kinds = {key: row["error"] and row["error"]["type"] for key, row in samples.items()}
    assert kinds == {
        "t.tsv#0": None,
        "t.tsv#1": "ragged_row",
        "t.tsv#2": None,
        "t.tsv#3": "bad_utf8",
    }
    assert samples["t.tsv#0"]["caption"] == "two\nlines"
    told = [json.loads(samples[f"t.tsv#{number}"]["metadata"]) for number in (0, 2)]
    assert told == [
        {"score": 4.5, "id": "007", "a\tname": "x"},
        {"score": "nan", "id": -3, "a\tname": "1e400"},
    ]


def test_scores_that_are_no_numbers_are_null(put: Put, workspace: Path) -> None:
    rows = [{"video": "a.mp4", "motion": float("nan"), "clarity": 0.5}]
    source = Source(name="s", kind="parquet", path=put({"t.parquet": parquet(rows)}), media="video")
    assert index(workspace, source)["metadata"].to_pylist() == ['{"clarity": 0.5, "motion": null}']


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
LINES = st.fixed_dictionaries(
    {},
    optional={"video": VALUES | st.just("a.mp4"), "start": VALUES, "end": VALUES}
    | {"caption": VALUES, "other": VALUES, "texts": VALUES, "images": VALUES},
)


@pytest.mark.parametrize("media", ["video", "interleaved"])
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(LINES.map(lambda row: json.dumps(row).encode()) | st.binary(), max_size=6))
def test_whatever_stands_in_a_line(tmp_path: Path, media: Any, rows: list[bytes]) -> None:
    """Arbitrary values in every column, and arbitrary bytes: a reference or a reason."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    (tmp_path / "a.mp4").write_bytes(b"a")
    source = Source(name="s", kind="jsonl", path=str(tmp_path), media=media)
    shutil.rmtree(tmp_path / "ws", ignore_errors=True)
    made = read_media(source, load_order(index(tmp_path / "ws", source)))
    lines = [line for row in rows for line in row.split(b"\n")]
    assert len(made) == sum(line.removeprefix(b"\xef\xbb\xbf").strip() != b"" for line in lines)
    for row in made.to_pylist():
        found = row["file" if media == "video" else "bytes"]
        assert (row["error"] is None) == (found is not None)
        assert row["error"] is None or None not in row["error"].values()
        json.loads(row["metadata"] or "{}")


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60) | st.text('a,"\n\r1.\0;x', max_size=40).map(str.encode))
def test_whatever_stands_in_a_csv_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(b"video,start,end,b\n" + data)
    source = Source(name="s", kind="csv", path=str(tmp_path))
    shutil.rmtree(tmp_path / "ws", ignore_errors=True)
    for row in index(tmp_path / "ws", source).to_pylist():
        assert row["error"] is not None or row["uri"]


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,start\nx,1\n")
    source = Source(name="s", kind="csv", path=str(tmp_path))
    with pytest.raises(
        ConfigError, match="has no column `video`: set `video_column` to one of url"
    ):
        list_source(source)
    (tmp_path / "t.csv").write_bytes(b"video,a,a\n")
    with pytest.raises(ConfigError, match="two columns `a`"):
        list_source(source)
    (tmp_path / "t.parquet").write_bytes(parquet([{"video": b"bytes", "texts": ["a"]}]))
    with pytest.raises(ConfigError, match=r"`video` is binary, expected names of video files"):
        list_source(Source(name="s", kind="parquet", path=str(tmp_path), media="video"))
    with pytest.raises(ConfigError, match="has no column `images`: set `images_column`"):
        list_source(Source(name="s", kind="parquet", path=str(tmp_path), media="interleaved"))
    with pytest.raises(ValueError, match="media is image, kind is csv: csv holds video"):
        Source(name="s", kind="csv", path="x", media="image")
    with pytest.raises(ValueError, match="video_stream is -1"):
        Source(name="s", kind="folder", path="x", media="video", video_stream=-1)


# Web documents


DOCUMENT = {"texts": ["one", None, "\U0001f600"], "images": [None, "i/a.jpg", None]}


def test_web_documents_in_lines(put: Put, workspace: Path) -> None:
    rows = [
        DOCUMENT | {"url": "https://example.com", "id": 1},
        {"texts": ["a"], "images": []},
        {"texts": ["a"]},
        {"texts": "a", "images": [None]},
        {"texts": ["a"], "images": [3]},
        {"texts": [], "images": []},  # the operator says that nothing is there
    ]
    data = b"\n".join(json.dumps(row).encode() for row in rows)
    source = Source(name="s", kind="jsonl", path=put({"d.jsonl": data}), media="interleaved")
    made = read_media(source, index(workspace, source)).to_pylist()
    assert [row["error"] and row["error"]["type"] for row in made] == [
        None,
        "bad_document",
        "no_document",
        "bad_document",
        "bad_document",
        None,
    ]
    assert json.loads(made[0]["bytes"]) == DOCUMENT
    assert json.loads(made[0]["metadata"]) == {"url": "https://example.com", "id": 1}
    assert {row["media"] for row in made} == {"interleaved"}


def test_web_documents_in_parquet(put: Put, workspace: Path) -> None:
    rows: list[dict[str, Any]] = [
        DOCUMENT | {"url": "u"},
        {"texts": None, "images": ["a"], "url": None},
    ]
    source = Source(
        name="s", kind="parquet", path=put({"d.parquet": parquet(rows)}), media="interleaved"
    )
    made = read_media(source, index(workspace, source)).to_pylist()
    assert json.loads(made[0]["bytes"]) == DOCUMENT
    assert made[0]["metadata"] == '{"url": "u"}'
    assert made[1]["error"]["type"] == "no_document"


def test_the_web_documents_of_the_assets(assets: Path, workspace: Path) -> None:
    source = Source(name="web", kind="jsonl", path=str(assets / "docs"), media="interleaved")
    read = read_media(source, index(workspace, source))
    made = [r for r in read.to_pylist() if r["uri"] == "interleaved.jsonl"]
    assert len(made) >= 4
    for row in made:
        tree = json.loads(row["bytes"])
        assert len(tree["texts"]) == len(tree["images"]) > 0
        assert "url" in json.loads(row["metadata"])


# Inputs of phases


def test_inputs_give_files_instead_of_bytes(tmp_path: Path, run_alone: Callable[..., Any]) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").write_bytes(b"a")
    (tmp_path / "v/a.jpg").write_bytes(b"b")
    storage = Storage(str(tmp_path / "ws"))
    for media, column in (("video", "file"), ("image", "bytes")):
        source = Source(name=media, kind="folder", path=str(tmp_path / "v"), media=media)  # type: ignore[arg-type]
        record = run_alone(storage, index_phase(source))
        rows = SampleInput(source, record)
        assert rows.columns[-1] == column
        loaded = rows.load(storage, rows.rows(storage, 0))
        assert loaded.column_names == list(rows.columns)
        kept = KeptInput(dataset_parts((source,), (record,)), record)
        assert column in kept.columns
