"""Documents to members and back, and members that lie."""

import gc
import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.layout import Image, Segment, Text
from infra.schedules import SCHEDULES
from infra.schema import TOKENS
from packing.members import (
    INPUT,
    LAYOUT,
    MEMBERS,
    TARGET,
    TEXT,
    Document,
    decode,
    encode,
    from_tokens,
)


def image(schedule: int = 20, num_scales: int = 3, seed: int = 0, role: str = "target") -> Image:
    codes = np.random.default_rng(seed).integers(
        0, 65_536, (2, SCHEDULES[schedule].num_codes(num_scales))
    )
    return Image(schedule, num_scales, codes[0], codes[1], role, role == "target")  # type: ignore[arg-type]


def plain(documents: list[Document] | tuple[Document, ...]) -> list[object]:
    """Documents as values that compare."""

    def values(segment: Segment) -> tuple[object, ...]:
        if isinstance(segment, Text):
            return (segment.ids.tolist(), segment.loss)
        codes = segment.input_codes.tolist(), segment.target_codes.tolist()
        return (segment.schedule, segment.num_scales, *codes, segment.role, segment.loss)

    return [
        (d.doc_id, d.copy, d.first_segment, d.task, d.source, [values(s) for s in d.segments])
        for d in documents
    ]


segments = st.one_of(
    st.builds(
        Text,
        st.lists(st.integers(0, 2**31 - 1), max_size=5).map(lambda ids: np.array(ids, np.int32)),
        st.booleans(),
    ),
    st.builds(
        image,
        st.integers(0, 40),
        st.integers(1, 4),
        st.integers(0, 99),
        st.sampled_from(["target", "condition"]),
    ),
)
documents = st.builds(
    Document,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.integers(0, 9),
    st.sampled_from(["t2i", "text"]),
    st.text(max_size=5),
    st.lists(segments, max_size=4).map(tuple),
    st.integers(0, 2**31 - 1),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(documents, max_size=4))
def test_round_trip(pack: list[Document]) -> None:
    members = encode(pack)
    assert tuple(members) == MEMBERS
    assert plain(decode(members)) == plain(pack)
    assert encode(pack) == members
    for name in (TEXT, INPUT, TARGET):
        array = np.load(io.BytesIO(members[name]), allow_pickle=False)
        assert array.dtype == (np.int32 if name == TEXT else np.uint16)


def test_from_tokens_reads_every_row() -> None:
    picture = image(seed=1)
    none: dict[str, object] = dict.fromkeys(
        ["role", "text_ids", "input_codes", "target_codes", "sample_id"]
    )
    text = none | {"kind": "text", "loss": False, "schedule": -1, "num_scales": 0}
    rows = [
        {
            "doc_id": f"{i}",
            "task": "t2i",
            "source": "here",
            "segments": [
                text | {"text_ids": [i, i + 1]},
                none
                | {"kind": "image", "role": "target", "loss": True, "schedule": 20}
                | {"num_scales": 3, "input_codes": picture.input_codes.tolist()}
                | {"target_codes": picture.target_codes.tolist()},
                text | {"text_ids": []},
            ],
        }
        for i in range(4)
    ]
    empty = np.zeros(0, np.int32)
    expected = [
        Document(
            f"{i}",
            i % 2,
            "t2i",
            "here",
            (Text(np.array([i, i + 1]), loss=False), picture, Text(empty, loss=False)),
        )
        for i in range(4)
    ]
    table = pa.Table.from_pylist(rows, schema=TOKENS)
    assert plain(from_tokens(table, [0, 1, 0, 1])) == plain(expected)
    assert plain(from_tokens(table.slice(1, 2), [1, 0])) == plain(expected[1:3])
    assert plain(from_tokens(table.take([3, 0]), [1, 0])) == plain([expected[3], expected[0]])
    assert from_tokens(table.slice(0, 0)) == []
    parts = [(0, 3), (1, 1), (1, 2), (2, 1)]
    sliced = [
        Document(d.doc_id, 0, d.task, d.source, d.segments[first:][:length], first)
        for d, (first, length) in zip(expected, parts, strict=True)
    ]
    firsts, lengths = zip(*parts, strict=True)
    assert plain(from_tokens(table, None, firsts, lengths)) == plain(sliced)
    assert plain(from_tokens(table.slice(1, 2), None, firsts[1:3], lengths[1:3])) == plain(
        sliced[1:3]
    )
    assert plain(from_tokens(table.slice(3), None, [2])) == plain(sliced[3:])
    for first, length in ((-1, 1), (0, 4), (3, 1), (2, 2), (1, 0), (2, -1), (3, 0)):
        with pytest.raises(ValueError, match=f"document 0 has 3 segments: {length} from segment"):
            from_tokens(table.slice(0, 1), None, [first], [length])
    failed = pa.Table.from_pylist([rows[0], {"doc_id": "bad"}], schema=TOKENS)
    with pytest.raises(ValueError, match="document bad has no tokens"):
        from_tokens(failed)


def test_tables_of_narrow_codes_are_read_as_well() -> None:
    """Tables of before held codes as uint16, and no counts per scale."""
    picture = image(seed=2)
    codes = pa.list_(pa.uint16())
    segment = pa.struct(
        [
            pa.field(field.name, codes if field.name.endswith("_codes") else field.type)
            for field in TOKENS.field("segments").type.value_type
            if field.name not in ("sampled", "flipped")
        ]
    )
    place = TOKENS.names.index("segments")
    schema = TOKENS.set(place, pa.field("segments", pa.list_(segment)))
    row = {
        "doc_id": "a",
        "task": "t2i",
        "source": "s",
        "segments": [
            {"kind": "image", "role": "target", "loss": True, "schedule": 20, "num_scales": 3}
            | {"input_codes": picture.input_codes.tolist()}
            | {"target_codes": picture.target_codes.tolist()}
        ],
    }
    table = pa.Table.from_pylist([row], schema=schema)
    assert plain(from_tokens(table)) == plain([Document("a", 0, "t2i", "s", (picture,))])


@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(4096, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (2**31 - 1, "<u4")]
)
def test_the_tokenizer_says_how_wide_codes_are(num_codes: int, dtype: str) -> None:
    """Not the codes that a pack happens to hold: two packs of one set have one format."""
    for top in (0, num_codes - 1):
        codes = np.full(14, top, np.int32)
        document = Document("a", 0, "t2i", "s", (Image(20, 3, codes, codes),))
        members = encode([document], num_codes)
        for name in (INPUT, TARGET):
            array = np.load(io.BytesIO(members[name]), allow_pickle=False)
            assert array.dtype == np.dtype(dtype)
        assert plain(decode(members)) == plain([document])
    bare = encode([Document("a", 0, "text", "s", ())], num_codes)
    assert np.load(io.BytesIO(bare[INPUT])).dtype == np.dtype(dtype)


@pytest.mark.parametrize("code", [4096, -1])
def test_codes_that_the_tokenizer_does_not_have_are_refused(code: int) -> None:
    good, bad = np.zeros(14, np.int32), np.full(14, code, np.int32)
    for codes in ((good, bad), (bad, good)):
        document = Document("a", 0, "t2i", "s", (Image(20, 3, *codes),))
        with pytest.raises(ValueError, match="the tokenizer has 4096"):
            encode([document], 4096)


def test_members_that_lie_are_refused() -> None:
    document = Document("a", 0, "t2i", "s", (Text(np.arange(3, dtype=np.int32)), image()))
    members = encode([document])

    def npy(array: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.lib.format.write_array(out, array, version=(1, 0))
        return out.getvalue()

    huge = members[TEXT].replace(b"(3,)", b"(3000000000000,)")  # would be 12 TB
    assert huge != members[TEXT]
    for name, data, match in (
        (TEXT, huge, "text.npy"),
        (TEXT, npy(np.array([None, {}, "x"])), r"text.npy says 3 values of \|O"),
        (TEXT, npy(np.zeros((3, 1), "<i4")), "text.npy is not an npy file .* flat"),
        (TEXT, members[TEXT][:-1], "holds 11 bytes"),
        (TEXT, members[TEXT].replace(b"v\x00", b"u\x00", 1), "after 127 bytes"),
        (TEXT, npy(np.zeros(4, "<i4")), "3 text ids .* hold 4"),
        (INPUT, npy(np.zeros(13, "<u2")), "input_codes holds 13 codes"),
        (TARGET, npy(np.zeros(20, "<u2")), "14 codes, .* 20 targets"),
        (TARGET, b"not npy", "is not an npy file"),
        (TARGET, npy(np.zeros(14, "<i4")), "expected flat <u2 or <u4"),
        (TARGET, npy(np.full(14, 2**31, "<u4")), "holds the code 2147483648"),
        (LAYOUT, b"{", "Expecting"),
        (LAYOUT, b"[]", "`documents` is None"),
    ):
        with pytest.raises(ValueError, match=match):
            decode(members | {name: data})


def test_packs_are_read_by_many_threads_at_once() -> None:
    # Python 3.11's `ast`, with which NumPy reads headers, fails if a collection of garbage gives
    # way to a second thread that parses as well.
    members = encode([Document("a", 0, "t2i", "s", (Text(np.arange(3, dtype=np.int32)), image()))])

    def give_way(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gc.callbacks.append(give_way)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(decode, [members] * 10_000))
    finally:
        gc.callbacks.remove(give_way)
        sys.setswitchinterval(before)
    assert {documents[0].doc_id for documents in found} == {"a"}


@pytest.mark.parametrize(
    ("segment", "name", "value", "match"),
    [
        (0, "length", -1, "cuts text at -1"),
        (0, "length", True, "`length` is True"),
        (0, "length", 10**12, "cuts text at 1000000000000"),
        (0, "kind", "video", "`kind` is 'video'"),
        (0, "loss", 1, "`loss` is 1"),
        (1, "schedule", 41, "schedule 41"),
        (1, "num_scales", 256, "256 scales"),
        (1, "role", None, "role is None"),
        (1, "length", 13, "says 13 codes where the schedule has 14"),
        (1, "length", None, "`length` is None"),
    ],
)
def test_a_layout_that_lies_is_refused(segment: int, name: str, value: object, match: str) -> None:
    document = Document("a", 0, "t2i", "s", (Text(np.arange(3, dtype=np.int32)), image()))
    members = encode([document])
    tree = json.loads(members[LAYOUT])
    tree["documents"][0]["segments"][segment][name] = value
    with pytest.raises(ValueError, match=match):
        decode(members | {LAYOUT: json.dumps(tree).encode()})


@pytest.mark.parametrize("name", ["copy", "first_segment"])
@pytest.mark.parametrize("value", [-1, 2**31, True, 1.0, "0", None])
def test_a_place_that_cannot_be_is_refused(name: str, value: object) -> None:
    members = encode([Document("a", 0, "text", "s", (Text(np.arange(3, dtype=np.int32)),))])
    tree = json.loads(members[LAYOUT])
    tree["documents"][0][name] = value
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}, expected"):
        decode(members | {LAYOUT: json.dumps(tree).encode()})
