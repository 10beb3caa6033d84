"""The ways to pack the same documents, each run on so many ranks, for ``nextscale simulate``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from infra.config import ConfigError
from packing.cost import PRESETS, Coefficients, coefficients, qwen2_5
from packing.simulate import Barrier, Packed, Simulation, pack_lengths, simulate, sum_packs
from packing.strategies import MAX_PACK_TOKENS, Packing
from pipelines.lengths import Documents, Existing

TOKENS_PER_PACK = 20_480  # of the paper's packs, by the memory that it saves (section 4)
BASELINE = "fixed_length"
MIN_TFLOPS, MAX_TFLOPS = 1e-3, 1e6  # of one rank: outside, figures and axes make no sense


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is simulated. ``tokens_per_pack``: by default that of the packs, else 20,480.

    ``zero`` is the stage of ZeRO: ranks wait once a step under 1 and 2, every micro-step under 3.
    ``tflops`` is what a rank sustains (10^12 FLOP/s), for tokens/s; 0 leaves these out.
    """

    ranks: tuple[int, ...] = (8, 64, 256, 1024)
    micro_steps: int = 1
    zero: int = 2
    token_cap_ratios: tuple[float, ...] = (1.0, 1.1, 1.25)
    tokens_per_pack: int | None = None
    batch_size: int = 4  # documents of a pack under batch_padding, as far as memory allows
    preset: str = "qwen2.5-7b"
    checkpointing: bool = True
    tflops: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1 or self.micro_steps < 1:
            raise ConfigError(
                f"ranks are {list(self.ranks)}, micro-steps {self.micro_steps}: use 1 or more"
            )
        if self.zero not in (1, 2, 3):
            raise ConfigError(f"ZeRO stage is {self.zero}: use 1, 2 or 3")
        ratios = self.token_cap_ratios
        if not ratios or not all(1 <= ratio < float("inf") for ratio in ratios):
            raise ConfigError(f"token cap ratios are {list(ratios)}: use 1 or more, no infinity")
        if self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.tflops != 0 and not MIN_TFLOPS <= self.tflops <= MAX_TFLOPS:
            raise ConfigError(
                f"tflops are {self.tflops}: give what a rank sustains, {MIN_TFLOPS:g} to "
                f"{MAX_TFLOPS:g}, or 0"
            )
        if self.batch_size < 1:
            raise ConfigError(f"batch size is {self.batch_size}: use 1 or more")
        tokens = TOKENS_PER_PACK if self.tokens_per_pack is None else self.tokens_per_pack
        if not 1 <= tokens <= MAX_PACK_TOKENS or tokens * max(ratios) >= MAX_PACK_TOKENS + 1:
            raise ConfigError(
                f"tokens per pack are {tokens}, token cap ratios {list(ratios)}: use 1 to "
                f"{MAX_PACK_TOKENS} tokens, also times the largest ratio"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed is {self.seed}: use 0 to 2^63 - 1")

    @property
    def barrier(self) -> Barrier:
        return "micro_step" if self.zero == 3 else "step"

    @property
    def waits(self) -> str:
        """When ranks wait for each other, in words."""
        often = "micro-step" if self.zero == 3 else "step"
        many = f"{self.micro_steps} micro-steps a step, " if self.micro_steps > 1 else ""
        return f"{many}ZeRO-{self.zero}: ranks wait every {often}"

    def coefficients(self, num_codes: int) -> Coefficients:
        shape = qwen2_5(PRESETS[self.preset], num_codes)
        return coefficients(shape, checkpointing=self.checkpointing)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One way to pack, and how it runs on each number of ranks; None: it fills no step of them."""

    name: str
    packed: Packed
    runs: dict[int, Simulation | None]
    note: str = ""  # what the numbers do not say


@dataclass(frozen=True, eq=False)
class Result:
    """All ways to pack the same documents."""

    documents: Documents
    scenario: Scenario
    tokens_per_pack: int
    outcomes: list[Outcome]

    def baseline(self, ranks: int) -> Simulation | None:
        """What throughputs are relative to: fixed_length on as many ranks."""
        [found] = [outcome for outcome in self.outcomes if outcome.name == BASELINE]
        return found.runs[ranks]

    def relative(self, outcome: Outcome, ranks: int) -> float | None:
        run, base = outcome.runs[ranks], self.baseline(ranks)
        return run.throughput / base.throughput if run is not None and base is not None else None

    def tokens_per_s(self, run: Simulation) -> float:
        """Of one rank."""
        return run.throughput * self.scenario.tflops * 1e12


def run(documents: Documents, scenario: Scenario) -> Result:
    """Pack the documents in every way and run the packs on every number of ranks.

    Raises ConfigError where no document fits a pack, or where no packs fill a step.
    """
    existing = documents.existing
    of = scenario.coefficients(existing.num_codes if existing else 16_384)
    packs: list[tuple[str, Packed]] = []
    tokens = scenario.tokens_per_pack or TOKENS_PER_PACK
    if existing is not None:
        inside = existing.pack >= 0
        packs.append(
            (
                f"{existing.table} as it is",
                sum_packs(
                    existing.pack[inside],
                    documents.lengths.take(np.flatnonzero(inside)),
                    existing.packing,
                    of,
                    existing.lower_bound,
                    existing.left_out,
                ),
            )
        )
        if scenario.tokens_per_pack is None:
            tokens = existing.packing.tokens_per_pack
    try:
        for name, packing in _ways(scenario, tokens):
            packs.append((name, pack_lengths(documents.lengths, packing, of)))
    except ValueError as error:
        raise ConfigError(f"{documents.name}: {error}") from None
    outcomes = [
        Outcome(name, packed, {n: _simulate(packed, n, scenario) for n in scenario.ranks})
        for name, packed in packs
    ]
    if existing is not None:
        outcomes[0] = replace(outcomes[0], note=_note(existing, of))
    if all(found is None for outcome in outcomes for found in outcome.runs.values()):
        most = max(packed.num_packs for _, packed in packs)
        raise ConfigError(
            f"{documents.name}: {many(most, 'pack')} at most, too few for a step of "
            f"{many(min(scenario.ranks), 'rank')} and {many(scenario.micro_steps, 'micro-step')}: "
            "ask for fewer"
        )
    return Result(documents, scenario, tokens, outcomes)


def many(number: int, noun: str) -> str:
    """1 rank, 1,024 ranks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _note(existing: Existing, of: Coefficients) -> str:
    """What must be known of a bound that is not of the scenario's cost model."""
    if existing.packing.strategy != "fixed_compute" or existing.coefficients == of:
        return ""  # without a budget, costs decide no pack and no bound
    if existing.coefficients is None:
        return "packed for a cost model that is not on record; the bound is of that one"
    return "packed for another cost model; the bound is of that one"


def _ways(scenario: Scenario, tokens: int) -> Iterator[tuple[str, Packing]]:
    batch, seed = scenario.batch_size, scenario.seed
    yield "batch_padding", Packing("batch_padding", tokens, batch_size=batch, seed=seed)
    yield BASELINE, Packing("fixed_length", tokens, seed=seed)
    for ratio in scenario.token_cap_ratios:
        yield f"fixed_compute {ratio}", Packing("fixed_compute", tokens, ratio, seed=seed)


def _simulate(packed: Packed, ranks: int, scenario: Scenario) -> Simulation | None:
    if packed.num_packs < ranks * scenario.micro_steps:
        return None
    return simulate(
        packed, num_ranks=ranks, micro_steps=scenario.micro_steps, barrier=scenario.barrier
    )
