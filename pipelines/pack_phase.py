"""What a set of packs is made from, and how: the phase behind `pipelines.pack_tokens`."""

from dataclasses import dataclass, field
from typing import Any

from infra import catalog, runs
from infra.runs import TableRecord
from packing.cost import Coefficients
from packing.plan import Packing
from packing.slices import Slicing


@dataclass(frozen=True)
class PackComponent:
    """Documents of one table of tokens, as a component of what is packed.

    ``decisions`` say how often a document is packed (the least of its samples' copies), which
    ``copies`` multiplies: more than 1 are spread over all packs. ``replicas`` are further tables of
    the same tokens with other noise: copy c is of ``tables[c % len(tables)]``. ``tasks`` are those
    taken; none named takes all. ``share`` of the tokens of all components is relative to the other
    shares, ``max_epochs`` says how often the component may be gone through to reach it.
    """

    name: str
    tokens: TableRecord
    replicas: tuple[TableRecord, ...] = ()
    decisions: tuple[TableRecord, ...] = ()  # the stages that judged the documents' samples
    copies: int = 1
    tasks: tuple[str, ...] = ()
    share: float = 1.0
    max_epochs: int = 1

    @property
    def tables(self) -> tuple[TableRecord, ...]:
        """The tokens, with their replicas."""
        return (self.tokens, *self.replicas)

    @property
    def chosen(self) -> str:
        """SQL over a table of tokens: whether a row is a document of this component."""
        tasks = ", ".join(map(catalog.literal, self.tasks))
        return "error IS NULL" + (f" AND task IN ({tasks})" if tasks else "")

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tables": [record.table for record in self.tables],
            "decisions": [record.table for record in self.decisions],
            "copies": self.copies,
            "tasks": self.tasks,
            "share": self.share,
            "max_epochs": self.max_epochs,
        }


@dataclass(frozen=True)
class PackPhase:
    """Packs of a mixture of components; a dataset alone is one component.

    ``num_tokens`` of all packs together; None takes as many as shares and epochs allow, which of
    one component is all of it. ``leading``: the component whose tokenizer and level the packs have;
    others may differ in these only where they hold no image. ``tokenizer`` is where that tokenizer
    lies ("": the carried one), for its codebook beside the packs; it changes no pack.
    """

    name: str
    components: tuple[PackComponent, ...]
    packing: Packing
    coefficients: Coefficients
    slicing: Slicing = field(default_factory=Slicing)
    num_tokens: int | None = None
    leading: int = 0
    tokenizer: str = ""

    @property
    def table(self) -> str:
        return f"packs/{self.name}"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "packing": self.packing,
            "coefficients": self.coefficients,
            "slicing": self.slicing,
            "num_tokens": self.num_tokens,
            "components": [component.spec for component in self.components],
        }

    @property
    def inputs(self) -> tuple[TableRecord, ...]:
        return tuple(record for one in self.components for record in (*one.tables, *one.decisions))

    @property
    def row_spec(self) -> str:
        # Which documents share a pack depends on all of them.
        return runs.fingerprint(runs.row_spec(self.spec, []), self.inputs)

    @property
    def fingerprint(self) -> str:
        return self.row_spec

    @property
    def tokens_facts(self) -> dict[str, Any]:
        """Tokenizer, vocabulary and level of the packs (`pipelines.replicas.SHARED`)."""
        return self.components[self.leading].tokens.facts

    @property
    def folder(self) -> str:
        """Where the reader finds this version of the packs, in the workspace."""
        return f"{self.table}/{runs.version_of(self.fingerprint)}"


def token_ranges(tokens: TableRecord, num_rows: int) -> list[range]:
    """All parts of a table in turn, so many in a range that they have ``num_rows`` together."""
    found, start, rows = [], 0, 0
    for number, part in enumerate(tokens.parts):
        rows += part.num_rows
        if rows >= num_rows or number + 1 == len(tokens.parts):
            found.append(range(start, number + 1))
            start, rows = number + 1, 0
    return found
