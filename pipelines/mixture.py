"""Several datasets in one set of packs, in shares of tokens: ``nextscale mix RECIPE``.

    nextscale mix mixture_pretrain_512 num_tokens=10_000_000_000

A recipe of its own kind: it names tables of tokens in one workspace, the share of all tokens that
each shall have, and how they are packed. recipes/mixture_*.yaml are Table 2 of the paper.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from infra import catalog, config
from infra.catalog import tokens_name
from infra.cluster import session
from infra.config import ConfigError
from infra.runs import TableRecord, load_record
from infra.storage import Storage
from packing.plan import Packing
from packing.slices import Slicing
from pipelines.cost_model import TRAINED, check_cost_model, cost_coefficients
from pipelines.pack_tokens import PackComponent, PackPhase, write_packs
from pipelines.recipe import recipe_path
from pipelines.replicas import SHARED, replica_table

OF_IMAGES = ("tokenizer_id", "num_codes", "level")
"""Facts that say nothing of tokens without images."""


@dataclass(frozen=True, kw_only=True)
class MixtureComponent:
    """Documents of a table of tokens (``photos-512``), or those of its ``tasks``.

    ``share`` is relative to the other shares. The component is gone through again, in another
    order, up to ``max_epochs`` times where its share asks for more than it holds. ``replicas``:
    tables of the same tokens with other noise, for the copies (`pipelines.replicas`).
    """

    name: str
    tokens: str
    share: float
    tasks: tuple[str, ...] = ()
    max_epochs: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share is {self.share}: use a positive number")
        if self.max_epochs < 1 or self.replicas < 1:
            raise ValueError(
                f"max_epochs is {self.max_epochs}, replicas {self.replicas}: at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What ``packs/<name>`` is mixed from. ``workspace`` is a folder or an ``s3://`` prefix.

    ``num_tokens``: of all packs together; null is as many as shares and ``max_epochs`` allow. The
    other fields are those of `pipelines.recipe.Pack`.
    """

    name: str
    workspace: str
    components: tuple[MixtureComponent, ...]
    num_tokens: int | None = None
    packing: Packing = field(default_factory=Packing)
    cost_model: str = "qwen2.5-7b"
    checkpointing: bool = True
    drop_captions: float = 0.1
    split_at_images: bool = False
    tokenizer: str = ""  # of the tokens, for its codebook beside the packs; "" is the carried one

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", self.name):
            raise ValueError(f"name {self.name!r}: use letters, digits, `_`, `.` and `-`")
        names = [component.name for component in self.components]
        if not names:
            raise ValueError("components is empty: name at least one")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"component `{name}` stands twice: give each a name of its own")
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}: at least 1, or null")
        if self.cost_model == TRAINED:
            raise ValueError("cost_model is `trained`, but a mixture trains nothing: name a preset")
        check_cost_model(self.cost_model)
        _ = self.slicing

    @property
    def slicing(self) -> Slicing:
        """Which segments of a document are packed."""
        return Slicing(
            drop_captions=self.drop_captions,
            split_at_images=self.split_at_images,
            seed=self.packing.seed,
        )

    @property
    def storage(self) -> Storage:
        return Storage(self.workspace)


def pack_mixture(
    name: str,
    overrides: Sequence[str] = (),
    ray_address: str | None = None,
    num_cpus: int | None = None,
) -> TableRecord:
    """Write the packs of a mixture and print what came out. Raises ConfigError before any work."""
    mixture = config.load(Mixture, recipe_path(name), overrides)
    phase = mixture_phase(mixture)
    with session(ray_address, num_cpus):
        record = write_packs(mixture.storage, phase)
    catalog.write_catalog(mixture.storage)
    for line in describe(record.facts["components"]):
        print(line)
    of = record.facts
    left = ", ".join(f"{n:,} {reason}" for reason, n in of["rejected"].items()) or "none"
    print(f"packs     {of['num_packs']:,} in {mixture.storage.path(phase.folder)}")
    print(f"slices    {of['dropped_captions']:,} captions dropped, {of['cut']:,} documents cut")
    print(f"rejected  {left}")
    return record


def mixture_phase(mixture: Mixture) -> PackPhase:
    """Its packs. Raises ConfigError where a table is missing, or does not fit the others."""
    storage = mixture.storage
    if load_record(storage, f"tokens/{mixture.name}") is not None:
        raise ConfigError(
            f"name {mixture.name} is that of a table of tokens, whose packs it would replace: "
            "choose another"
        )
    components = tuple(_component(storage, one) for one in mixture.components)
    leading = check_alike(storage, [component.tokens for component in components])
    num_codes = components[leading].tokens.facts["num_codes"]
    return PackPhase(
        mixture.name,
        components,
        mixture.packing,
        cost_coefficients(mixture.cost_model, num_codes, mixture.checkpointing),
        mixture.slicing,
        mixture.num_tokens,
        leading,
        mixture.tokenizer,
    )


def check_alike(storage: Storage, tables: Sequence[TableRecord]) -> int:
    """Which table's facts hold for all: the first with images, or the first.

    Tables without images may be of another tokenizer and level. Raises ConfigError with both values
    of a fact in which tables differ and must not.
    """
    if all(table.facts == tables[0].facts for table in tables):
        return 0
    images = [has_images(storage, table) for table in tables]
    leading = images.index(True) if True in images else 0
    said = tables[leading]
    for table, holds_images in zip(tables, images, strict=True):
        for name in SHARED:
            ours, theirs = said.facts[name], table.facts[name]
            if ours != theirs and (holds_images or name not in OF_IMAGES):
                raise ConfigError(
                    f"{table.table} has {name} {theirs}, {said.table} has {ours}: tokenize one of "
                    "them again, or leave it out of the mixture"
                )
    return leading


def has_images(storage: Storage, tokens: TableRecord) -> bool:
    """Whether a table holds an image, by what its files say of themselves; true if unsaid."""
    for part in range(len(tokens.parts)):
        with storage.open(tokens.path(part)) as file:
            footer = pq.ParquetFile(file).metadata
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            kinds = [
                group.column(i)
                for i in range(group.num_columns)
                if group.column(i).path_in_schema.split(".")[0::3] == ["segments", "kind"]
            ]
            for kind in kinds:
                said = kind.statistics
                if said is None or (said.num_values and not said.has_min_max):
                    return True
                if said.num_values and said.min == "image":  # sorts before "text"
                    return True
    return False


def describe(components: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The realised mixture, from ``facts["components"]``, as lines of text."""
    width = max(len("component"), *(len(one["name"]) for one in components))
    yield (
        f"{'component':<{width}} {'tokens':>17} {'share':>8} {'quota':>8} {'off by':>8} "
        f"{'epochs':>8} {'documents left out':>19}"
    )
    for one in components:
        yield (
            f"{one['name']:<{width}} {one['num_tokens']:>17,} {one['share']:>8.2%} "
            f"{one['quota']:>8.2%} {one['deviation']:>8.2%} {one['epochs']:>8.2f} "
            f"{one['left_out_documents']:>19,}"
        )


def _component(storage: Storage, of: MixtureComponent) -> PackComponent:
    tables = [_load(storage, replica_table(of.tokens, n)) for n in range(of.replicas)]
    dataset = tokens_name(of.tokens)[0].rpartition("-")[0]
    stages = (f"{stage}/{dataset}" for stage in ("decisions", "caption_decisions"))
    found = (load_record(storage, stage) for stage in stages)
    return PackComponent(
        of.name,
        tables[0],
        tuple(tables[1:]),
        tuple(record for record in found if record is not None),
        tasks=of.tasks,
        share=of.share,
        max_epochs=of.max_epochs,
    )


def _load(storage: Storage, table: str) -> TableRecord:
    record = load_record(storage, table)
    if record is None:
        there = [name for name in storage.names("tokens") if load_record(storage, f"tokens/{name}")]
        raise ConfigError(
            f"{storage.path(table)} is not there: the workspace has the tokens "
            f"{', '.join(there) or 'of nothing yet'}"
        )
    return record
