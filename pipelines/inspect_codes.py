"""``nextscale inspect-codes RECIPE [ID ...]``: what the codes of images look like, drawn again.

One HTML page, with pictures after 1, 2, ... K scales from target codes and from input codes beside
the original, and numbers by scale for page and terminal: PSNR, flips, use of the codebook.

An image's inputs belong together: at each scale they take up what earlier ones left, wrong codes
included, so all of them should draw the image no worse than the targets do. Targets are each the
best answer to the inputs before them, and repair what other inputs than they broke.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra import html
from infra.config import ConfigError
from infra.html import jpeg_uri
from infra.pixels import Pixels, encode_jpeg, resize_crop
from infra.runs import TableRecord, load_record
from pipelines.code_sheet import CodeSheet
from pipelines.code_summary import Measures, measure, summarise
from pipelines.coded_images import (
    MAX_DOCUMENTS,
    CodedImage,
    Redrawn,
    count_documents,
    find_images,
    redraw,
)
from pipelines.progress import Progress
from pipelines.recipe import Recipe
from pipelines.replicas import replica_table
from pipelines.tokenize_documents import tokenize_phase
from tokenize_offline import checkpoint

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "inspect-codes.html"
LARGE, SMALL = 640, 220  # pixels of the longer side: the final pictures, those of each scale
STALE = "note: documents or parameters have changed since these tokens: run `nextscale tokenize`"


@dataclass(frozen=True)
class Step:
    """An image up to one scale: ``grid`` as rows x columns, flips of this scale, pictures."""

    scale: int
    grid: str
    flipped: float
    target_db: float
    input_db: float
    target_uri: str
    input_uri: str


@dataclass(frozen=True)
class Card:
    """An image on the page: the original, then what all scales draw, then every step."""

    image: CodedImage
    size: str
    original_uri: str
    target_uri: str
    input_uri: str
    steps: list[Step]


def inspect_codes(
    recipe: Recipe,
    ids: Sequence[str] = (),
    num_pictures: int = 12,
    seed: int = 0,
    replica: int = 0,
    output: str | None = None,
    png: str | None = None,
) -> list[str]:
    """Write the page (default: inspect-codes.html in the workspace); returns lines to print.

    ``ids`` begin a document's or a sample's id, each of at most ``num_pictures`` documents; without
    them as many are drawn by ``seed``. ``png`` also writes one plain picture. Both are paths or
    ``s3://`` URIs. Raises ConfigError, before any work, where there are no codes or they are
    another tokenizer's, and where page or picture cannot be written.
    """
    if not 1 <= num_pictures <= MAX_DOCUMENTS:
        raise ConfigError(f"--pictures is {num_pictures}: use 1 to {MAX_DOCUMENTS}")
    output = recipe.storage.path(PAGE) if output is None else output
    for path in (output, png):
        if path is not None:
            html.check_page(path)
    tokens, documents = _tables(recipe, replica)
    assert recipe.tokenize is not None
    weights = recipe.tokenize.operator.checkpoint
    if checkpoint.identity(weights) != tokens.facts["tokenizer_id"]:
        raise ConfigError(
            f"{tokens.table} was made by tokenizer {tokens.facts['tokenizer_id']}, "
            f"tokenize.operator.checkpoint is {checkpoint.identity(weights)}: name the one of the "
            "codes, or run `nextscale tokenize`"
        )
    images = find_images(recipe.storage, tokens, documents, ids, num_pictures, seed)
    tokenizer = checkpoint.load(weights)
    num_scales = images[0].num_scales
    sheet = CodeSheet(num_scales) if png is not None else None
    cards: list[Card] = []
    by_role: dict[str, list[Measures]] = {}
    progress = Progress(tokens.table, len(images), "images")
    for image in images:
        redrawn = redraw(tokenizer, image)
        cards.append(_card(image, redrawn))
        by_role.setdefault(image.role, []).append(measure(image, redrawn))
        if sheet is not None:
            sheet.add(image, redrawn)
        progress.add(1)
    codebook_size = tokens.facts["num_codes"]
    roles = [summarise(role, by_role[role], codebook_size) for role in sorted(by_role)[::-1]]
    notes = _left_out(recipe, tokens, ids, num_pictures)
    if tokenize_phase(recipe, documents, replica).fingerprint != tokens.fingerprint:
        notes.insert(0, STALE)
    page = html.render(
        TEMPLATES,
        "inspect_codes.html",
        table=tokens.table,
        workspace=recipe.storage.path(),
        tokenizer_id=tokens.facts["tokenizer_id"],
        codebook_size=codebook_size,
        num_scales=num_scales,
        notes=notes,
        roles=roles,
        cards=cards,
    )
    written = html.write_page(output, page)
    lines = [*notes, ""] if notes else []
    for role in roles:
        lines += [*role.text(), ""]
    lines.append(f"page      {written}")
    if sheet is not None and png is not None:
        sheet.write(png)
        lines.append(f"picture   {png}")
    return lines


def _tables(recipe: Recipe, replica: int) -> tuple[TableRecord, TableRecord]:
    """Tokens and documents. Raises ConfigError where there are none, or none with images."""
    if recipe.holds_texts:
        raise ConfigError(f"dataset {recipe.dataset} is of texts: it has no codes to inspect")
    if recipe.tokenize is None:
        raise ConfigError("the recipe has no `tokenize` section: add one")
    replicas = recipe.tokenize.replicas
    if not 0 <= replica < replicas:
        to_use = "use 0" if replicas == 1 else f"use 0 to {replicas - 1}"
        raise ConfigError(f"--replica is {replica}, tokenize.replicas is {replicas}: {to_use}")
    found = []
    for name in (replica_table(recipe.tokens_name, replica), f"documents/{recipe.dataset}"):
        record = load_record(recipe.storage, name)
        if record is None:
            place = recipe.storage.path(name)
            raise ConfigError(f"{place} is not there: `nextscale tokenize` makes it")
        found.append(record)
    return found[0], found[1]


def _left_out(
    recipe: Recipe, tokens: TableRecord, ids: Sequence[str], num_pictures: int
) -> list[str]:
    """A note for each id that begins those of more documents than are shown."""
    if not ids:
        return []
    return [
        f"note: {count - num_pictures:,} more documents are of ids that begin with `{word}`: "
        "raise --pictures, or name more of the id"
        for word, count in count_documents(recipe.storage, tokens, ids).items()
        if count > num_pictures
    ]


def _card(image: CodedImage, redrawn: Redrawn) -> Card:
    flipped = image.flipped / image.num_codes
    steps = [
        Step(
            scale + 1,
            f"{height} × {width}",
            float(flipped[scale]),
            float(redrawn.target_db[scale]),
            float(redrawn.input_db[scale]),
            _uri(redrawn.from_targets[scale], SMALL),
            _uri(redrawn.from_inputs[scale], SMALL),
        )
        for scale, (height, width) in enumerate(image.schedule.grids[: image.num_scales])
    ]
    height, width = image.original.shape[:2]
    return Card(
        image,
        f"{width} × {height}",
        _uri(image.original, LARGE),
        _uri(redrawn.from_targets[-1], LARGE),
        _uri(redrawn.from_inputs[-1], LARGE),
        steps,
    )


def _uri(rgb: Pixels, side: int) -> str:
    """A JPEG of at most ``side`` pixels a side, as a data URI."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    if scale < 1:
        rgb, _ = resize_crop(rgb, round(height * scale), round(width * scale))
    return jpeg_uri(encode_jpeg(rgb, quality=90))
