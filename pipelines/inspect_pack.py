"""``nextscale inspect PACKS NUMBER``: one pack as an HTML page.

What is in it and where, the text read back, every image drawn from its input codes and from its
target codes, the attention mask as a picture, and what it costs. The pack is read as the trainer
reads it, so its checksum holds when there is a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra import html, runs
from infra.config import ConfigError, build
from infra.html import jpeg_uri
from infra.layout import Image, Segment, Text, count, layout
from infra.pixels import encode_jpeg, resize_crop
from infra.runs import TableRecord
from infra.schedules import SCHEDULES, Schedule
from infra.storage import Storage
from packing.cost import Coefficients, cost
from packing.members import Document
from packing.packs import Facts, PackError, open_packs, read_pack
from pipelines.decided import run_of
from pipelines.mask_picture import visible_shares
from pipelines.pack_bars import cost_bar, mask_figure, position_bars
from tokenize_offline import checkpoint, codes, text
from tokenize_offline.model import Tokenizer
from tokenize_offline.text import TextTokenizer

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 360  # pixels of the longer side of a picture
TEXT_CHARACTERS = 4_000
MAX_PICTURES = 200  # each from inputs and from targets: more make a page that no browser likes


@dataclass(frozen=True)
class Part:
    """A segment on the page: ``text``, or the pictures of an image; None where they are not made.

    ``number`` is its place in the whole document, of which the pack may hold a slice.
    """

    number: int
    about: str
    text: str | None = None
    input_uri: str | None = None
    target_uri: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Member:
    """A document on the page; its share is of the pack's cost, or of its tokens without a model."""

    document: Document
    num_tokens: int
    num_loss: int
    num_pairs: int
    cost: float | None
    share: float
    parts: list[Part]

    @property
    def slice(self) -> str:
        """``0 to 2``: the segments of the document that are here."""
        first = self.document.first_segment
        last = first + len(self.document.segments) - 1
        return str(first) if first == last else f"{first} to {last}"


def inspect_pack(
    name: str,
    number: int,
    workspace: str,
    output: str | None = None,
    tokenizer: str | None = None,
    vocabulary: str | None = None,
) -> list[str]:
    """Write the page of a pack of ``packs/<name>``; returns lines to print.

    By default it goes to ``inspect-<name>-<number>.html`` in the workspace. ``tokenizer`` and
    ``vocabulary`` are paths, for packs of others than those that the workspace's runs name; a page
    of packs whose own are not at hand says so. Raises ConfigError for packs or a pack that are not
    there or damaged, for a named tokenizer of other codes, and where the page cannot be written.
    """
    storage, table = Storage(workspace), f"packs/{name.removeprefix('packs/')}"
    output = storage.path(f"inspect-{table[6:]}-{number}.html") if output is None else output
    record = runs.load_record(storage, table)
    if record is None:
        raise ConfigError(
            f"{storage.path(table)} is not there: name a table of packs of the workspace, or "
            "another one with --workspace"
        )
    html.check_page(output)
    try:
        packs = open_packs(storage.path(table))
        if not 0 <= number < packs.num_packs:
            raise ConfigError(f"{table} has no pack {number}: use 0 to {packs.num_packs - 1}")
        pack = read_pack(packs, number)
    except PackError as error:
        raise ConfigError(f"{table}: {error}: see `nextscale verify`") from None
    notes: list[str] = []
    settings = _tokenize_settings(storage, table, record)
    drawer = _tokenizer(packs.facts, tokenizer, settings.get("checkpoint", ""), notes)
    reader = _vocabulary(packs.facts, vocabulary, settings.get("vocabulary", ""), notes)
    of = _coefficients(storage, record)
    if of is None:
        notes.append("runs/ does not say the cost model any more: shares are of the tokens")
    members = _members(pack.documents, of, drawer, reader, notes)
    sequence = layout(pack.segments, packs.facts.vocabulary)
    index = {column: packs.index[column][number].as_py() for column in packs.index.column_names}
    bars = position_bars(sequence)
    if of is not None:
        bars.append(cost_bar(sequence.counts, of))
    mask = visible_shares(sequence)
    page = html.render(
        TEMPLATES,
        "inspect_pack.html",
        table=table,
        workspace=storage.path(),
        number=number,
        num_packs=packs.num_packs,
        facts=packs.facts,
        index=index,
        visible=sequence.counts.num_pairs / sequence.num_tokens**2,
        notes=notes,
        bars=bars,
        mask=mask,
        figure=mask_figure(sequence),
        members=members,
        mean_cost=float(np.mean(packs.index["cost"].to_numpy())),
    )
    return [*(f"note: {note}" for note in notes), f"page      {html.write_page(output, page)}"]


def _tokenize_settings(storage: Storage, table: str, record: TableRecord) -> dict[str, str]:
    """The parameters of the operator that made the codes; none where no run says them."""
    components = record.facts.get("components")
    names = components[0]["tables"] if components else [table.replace("packs/", "tokens/", 1)]
    tokens = runs.load_record(storage, names[0])
    run = None if tokens is None else run_of(storage, tokens)
    operators = run["config"].get("operators", []) if run else []
    return next((found for found in operators if "checkpoint" in found), {})


def _tokenizer(facts: Facts, named: str | None, used: str, notes: list[str]) -> Tokenizer | None:
    """The tokenizer of the codes: the one named, the one that the run used, or the carried one.

    None, with a note, where none of these is it. Raises ConfigError for a named one of other codes.
    """
    for path in (used, "") if named is None else (named,):
        try:
            identity = checkpoint.identity(path)
        except ConfigError:
            if named is not None:
                raise
            continue
        if identity == facts.tokenizer_id:
            return checkpoint.load(path)
        if named is not None:
            raise ConfigError(
                f"--tokenizer {named} is {identity}, the packs are of {facts.tokenizer_id}: name "
                "the one of the codes"
            )
    notes.append(
        f"no tokenizer {facts.tokenizer_id} is at hand, so that no picture is drawn: name it with "
        "--tokenizer"
    )
    return None


def _vocabulary(
    facts: Facts, named: str | None, used: str, notes: list[str]
) -> TextTokenizer | None:
    """The text vocabulary, found in the same way."""
    for source in (used, "") if named is None else (named,):
        try:
            identity = text.identity(source)
        except ConfigError:
            if named is not None:
                raise
            continue
        if identity == facts.vocabulary_id:
            return text.load(source)
        if named is not None:
            raise ConfigError(
                f"--vocabulary {named} is {identity}, the packs are of {facts.vocabulary_id}: name "
                "the one of the text ids"
            )
    notes.append(
        f"no text vocabulary {facts.vocabulary_id} is at hand, so that ids stand for words: name "
        "it with --vocabulary"
    )
    return None


def _coefficients(storage: Storage, record: TableRecord) -> Coefficients | None:
    run = run_of(storage, record)
    if run is None:
        return None
    said = run["config"]["coefficients"]
    return build(Coefficients, {key: value for key, value in said.items() if key != "class"})


def _members(
    documents: Sequence[Document],
    of: Coefficients | None,
    drawer: Tokenizer | None,
    reader: TextTokenizer | None,
    notes: list[str],
) -> list[Member]:
    counts = [count(document.segments) for document in documents]
    costs = [float(cost(*counted, of)) if of else float(counted.num_tokens) for counted in counts]
    total = sum(costs)
    left = MAX_PICTURES
    images = sum(isinstance(s, Image) for document in documents for s in document.segments)
    if drawer is not None and images > left:
        notes.append(f"{left} of {images:,} images are drawn, the first ones")
    found = []
    for document, counted, own in zip(documents, counts, costs, strict=True):
        parts = []
        for place, segment in enumerate(document.segments, document.first_segment):
            draws = drawer if left > 0 else None
            left -= isinstance(segment, Image)
            parts.append(_part(place, segment, draws, reader))
        found.append(Member(document, *counted, own if of else None, own / total, parts))
    return found


def _part(
    number: int, segment: Segment, drawer: Tokenizer | None, reader: TextTokenizer | None
) -> Part:
    loss = "predicted" if segment.loss else "not predicted"
    if isinstance(segment, Text):
        ids = segment.ids.tolist()
        words = " ".join(map(str, ids)) if reader is None else reader.decode(ids)
        note = f"the first {TEXT_CHARACTERS:,} characters" if len(words) > TEXT_CHARACTERS else ""
        ids_of = f"{len(ids):,} id{'s' if len(ids) != 1 else ''}"
        return Part(number, f"text, {ids_of}, {loss}", words, note=note)
    schedule = SCHEDULES[segment.schedule]
    height, width = schedule.grids[segment.num_scales - 1]
    if segment.role == "condition":
        loss = "read, not predicted"
    flipped = float(np.mean(segment.input_codes != segment.target_codes))
    about = (
        f"{segment.role} image, {segment.num_codes:,} codes on {segment.num_scales} grids up to "
        f"{height} × {width}, {loss}"
    )
    note = f"{flipped:.1%} of the input codes are not the target's"
    if drawer is None:
        return Part(number, about, note=note)
    kind = schedule, segment.num_scales
    from_inputs, from_targets = (
        _uri(drawer, values, *kind) for values in (segment.input_codes, segment.target_codes)
    )
    return Part(number, about, None, from_inputs, from_targets, note)


def _uri(
    drawer: Tokenizer, values: NDArray[np.integer], schedule: Schedule, num_scales: int
) -> str:
    """The picture that codes [N] draw, as a data URI of at most `SIDE` pixels a side."""
    rgb = codes.decode(drawer, values[None], schedule, num_scales)[0]
    height, width = rgb.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        rgb, _ = resize_crop(rgb, round(height * scale), round(width * scale))
    return jpeg_uri(encode_jpeg(rgb, quality=90))
