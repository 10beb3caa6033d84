"""Keys and core columns of every table, each with its unit and its meaning.

Score columns are not listed here: they come from the operators' ``writes``. The reference for
readers, ``infra/tables.md``, is generated from these definitions.
"""

import hashlib

import pyarrow as pa


def column(name: str, type_: pa.DataType, unit: str, meaning: str) -> pa.Field:
    """An Arrow field that carries its unit and meaning as metadata (stripped before storage)."""
    return pa.field(name, type_, metadata={"unit": unit, "meaning": meaning})


ERROR_TYPE = pa.struct(
    [("stage", pa.string()), ("type", pa.string()), ("message", pa.string())],
)
ERROR = column("error", ERROR_TYPE, "", "why this row failed: stage, type, message; null if fine")

REJECTIONS = ("too_small_for_level", "too_elongated", "too_few_frames")
"""Types of errors that are verdicts on rows that were read: trying again would say the same."""

# A decoded picture inside a phase: RGB, uint8, row-major. Never stored.
IMAGE_TYPE = pa.struct(
    [("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.large_binary())],
)

FILE_TYPE = pa.struct(
    [
        ("root", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("stream", pa.int32()),
    ],
)
"""Where a clip lies: bytes [offset, offset + length) of ``uri`` in the store ``root`` (null length:
to its end), in them the seconds [start_s, end_s) of the video stream ``stream``. Never stored."""

# A frame of a clip inside a phase, and the one shortly after it. Never stored.
FRAME_TYPE = pa.struct(
    [
        ("timestamp_s", pa.float64()),
        ("image", IMAGE_TYPE),
        ("partner_s", pa.float64()),
        ("partner", IMAGE_TYPE),
        ("error", ERROR_TYPE),
    ],
)

SAMPLES = pa.schema(
    [
        column("sample_id", pa.string(), "", "blake2b-128 of (source, key) as hex; unique"),
        column("source", pa.string(), "", "name of the source in the recipe"),
        column("key", pa.string(), "", "path in the source, and the place in a file of many"),
        column("uri", pa.string(), "", "file that holds the media, relative to the source's root"),
        column(
            "offset", pa.int64(), "bytes", "where the media starts in `uri`; in Parquet, the row"
        ),
        column("length", pa.int64(), "bytes", "length of the media; null = the whole file or row"),
        column("start_s", pa.float64(), "s", "where a clip starts in its video; null = at 0"),
        column("end_s", pa.float64(), "s", "where it ends, itself excluded; null = with the video"),
        column("media", pa.string(), "", "image, video, text or interleaved"),
        column("caption", pa.string(), "", "the given caption, if any"),
        column("metadata", pa.string(), "JSON", "all else that the source says of the sample"),
        ERROR,
    ],
)

DECISIONS = pa.schema(
    [
        column("sample_id", pa.string(), "", "the sample"),
        column("status", pa.string(), "", "kept, rejected or failed: exactly one per sample"),
        column("reason", pa.string(), "", "first failing rule, `<rule>:missing`, or failed stage"),
        column("failed_rules", pa.list_(pa.string()), "", "all failing rules, in order"),
        column("topic", pa.string(), "", "topic used for balancing"),
        column("copies", pa.int32(), "count", "how often the sample is used; 0 unless kept"),
    ],
)

DUPLICATES = pa.schema(
    [
        column("sample_id", pa.string(), "", "the sample"),
        column(
            "group", pa.string(), "", "sample_id of the group's representative; own id if alone"
        ),
        column("representative", pa.bool_(), "", "whether this is the one of its group to keep"),
    ],
)

# What `operators.motion_classes` measures, which says what each of them means.
_MOTION = """
short_s short_speed short_direction_variance short_camera_speed short_camera_share
short_object_speed short_object_share short_unlike short_contrast short_detail_share
across_s across_shift across_direction_variance across_camera_shift across_camera_share
across_object_shift across_object_share across_changed_share across_unlike across_contrast
across_colours across_points
"""

CANDIDATE = pa.struct(
    [
        ("timestamp_s", pa.float64()),
        ("class", pa.string()),
        ("evidence", pa.string()),
        *((name, pa.float32()) for name in _MOTION.split()),
        ("kept", pa.bool_()),
        ("rank", pa.int32()),
        ("flow", pa.list_(pa.float32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("cropped", pa.float32()),
        ("image", pa.large_binary()),
    ],
)

FRAMES = pa.schema(
    [
        column("sample_id", pa.string(), "", "the clip"),
        column(
            "candidates",
            pa.list_(CANDIDATE),
            "",
            "frames that were looked at, in time order: `class` is static, camera, object or cut, "
            "`evidence` says why, with its statistics; `rank` is the order of importance of those "
            "that qualify; `flow` a grid of 8 x 8 vectors (x, y) in pixels per second; `image` "
            "only of kept ones, encoded at the level's size",
        ),
        column("num_candidates", pa.int32(), "count", "frames that were looked at"),
        column("num_kept", pa.int32(), "count", "frames that are kept"),
        ERROR,
    ],
)

CAPTION_VARIANT = pa.struct(
    [
        ("style", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("num_prompt_tokens", pa.int32()),
        ("latency_s", pa.float32()),
        ("checks", pa.list_(pa.string())),
        ("error", ERROR_TYPE),
    ],
)

CAPTIONS = pa.schema(
    [
        column("sample_id", pa.string(), "", "the sample"),
        column("text", pa.string(), "", "the caption"),
        column("style", pa.string(), "", "name of its style; null where the recipe names none"),
        column("engine", pa.string(), "", "given, or what wrote it: openai (an endpoint) or vllm"),
        column("model", pa.string(), "", "the model's name as it was asked for; null if given"),
        column("prompt_hash", pa.string(), "", "hash of the request without picture and values"),
        column("num_tokens", pa.int32(), "tokens", "length of the answer, as the engine counts"),
        column(
            "num_prompt_tokens", pa.int32(), "tokens", "length of the request, picture included"
        ),
        column(
            "latency_s",
            pa.float32(),
            "s",
            "how long the answer took when it was first asked for; null without a response cache, "
            "which alone could repeat it",
        ),
        column("checks", pa.list_(pa.string()), "", "checks that the text did not pass"),
        column(
            "variants",
            pa.list_(CAPTION_VARIANT),
            "",
            "all styles drawn for the sample, in drawn order, with their texts or errors; null "
            "where it is one",
        ),
        ERROR,
    ],
)

DOCUMENT_SEGMENT = pa.struct(
    [
        ("kind", pa.string()),
        ("text", pa.string()),
        ("image", pa.large_binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("cropped", pa.float32()),
        ("role", pa.string()),
        ("loss", pa.bool_()),
        ("sample_id", pa.string()),
    ],
)

DOCUMENTS = pa.schema(
    [
        column("doc_id", pa.string(), "", "blake2b-128 of (dataset, task, sample ids); unique"),
        column("task", pa.string(), "", "t2i, i2t, edit, interleaved or text"),
        column("source", pa.string(), "", "source of the document's first sample"),
        column("sample_ids", pa.list_(pa.string()), "", "samples it is made of, failed or not"),
        column(
            "segments",
            pa.list_(DOCUMENT_SEGMENT),
            "",
            "ordered text and image segments; images encoded at the highest level's size; `role`: "
            "target or condition of an image; system, user or assistant of a message; else null; "
            "`cropped`: share of the original image's pixels cut away, null for text",
        ),
        ERROR,
    ],
)

TOKEN_SEGMENT = pa.struct(
    [
        ("kind", pa.string()),
        ("role", pa.string()),
        ("loss", pa.bool_()),
        ("text_ids", pa.list_(pa.int32())),
        ("schedule", pa.int16()),
        ("num_scales", pa.int8()),
        # For any codebook: Parquet stores a code in the bits that its dictionary needs, so that
        # uint16 would save nothing (42 photographs at 512: 465.5 KB so, 465.9 KB as uint32).
        ("input_codes", pa.list_(pa.uint32())),
        ("target_codes", pa.list_(pa.uint32())),
        ("sampled", pa.list_(pa.int32())),
        ("flipped", pa.list_(pa.int32())),
        ("sample_id", pa.string()),
    ],
)

TOKENS = pa.schema(
    [
        column("doc_id", pa.string(), "", "the document"),
        column("task", pa.string(), "", "as in documents"),
        column("source", pa.string(), "", "as in documents"),
        column("sample_ids", pa.list_(pa.string()), "", "as in documents"),
        column(
            "segments",
            pa.list_(TOKEN_SEGMENT),
            "",
            "text ids, or schedule (row of Table 14) with input and target codes of all scales; "
            "counts per scale, `sampled`: tokens whose input code was drawn, `flipped`: those of "
            "them that it changed",
        ),
        column("num_tokens", pa.int32(), "positions", "T of the document as a sequence"),
        column("num_loss", pa.int32(), "positions", "positions with a target"),
        column("num_pairs", pa.int64(), "pairs", "query-key pairs under the document's mask"),
        ERROR,
    ],
)


def digest(*parts: str) -> str:
    """blake2b-128 of the parts as 32 hex characters; parts cannot run into each other."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        h.update(len(encoded).to_bytes(8, "little"))
        h.update(encoded)
    return h.hexdigest()


def sample_id(source: str, key: str) -> str:
    """The id of a sample: depends on the source's name and its key alone, never on its place."""
    return digest(source, key)


def doc_id(dataset: str, task: str, sample_ids: list[str]) -> str:
    """The id of a document: depends on its dataset, task and samples alone."""
    return digest(dataset, task, *sample_ids)


def uniform(id_: str, seed: int) -> float:
    """u in [0, 1): the first 8 bytes of md5(seed || id) over 2^64, for seeded sampling.

    A row is drawn iff ``uniform(id, seed) < p``, whatever engine, worker or order. Its SQL twin is
    `uniform_sql`.
    """
    value = hashlib.md5(f"{seed}{id_}".encode(), usedforsecurity=False).digest()[:8]
    return int.from_bytes(value, "big") / 2**64


def uniform_sql(id_column: str, seed: int) -> str:
    """The DuckDB expression equal to `uniform` for the column ``id_column``."""
    # DuckDB has no unsigned 128-bit parse of hex; '0x' strings cast to UBIGINT are exact.
    return f"(('0x' || substr(md5('{seed}' || {id_column}), 1, 16))::UBIGINT::DOUBLE / 2.0**64)"
