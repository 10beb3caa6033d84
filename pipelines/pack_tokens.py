"""Tokens -> pack plan -> shards and index: ``nextscale pack RECIPE``, ``nextscale mix RECIPE``.

The plan is numbers only (`pipelines.plan_packs`), made in this process in bounded memory; then the
documents travel from the tokens to the shards (`pipelines.write_shards`). A killed run goes on with
what is complete.
"""

import time
from typing import Any

from infra import runs
from infra.runs import Part, TableRecord
from infra.storage import Storage
from packing.packs import CODEBOOK, FACTS, INDEX, Facts
from pipelines.pack_phase import PackComponent, PackPhase
from pipelines.plan_packs import plan_packs, remove_manifest
from pipelines.progress import say
from pipelines.tokenizer_codebook import is_of, write_codebook
from pipelines.write_shards import ShardJob, write_shards

__all__ = ["PackComponent", "PackPhase", "write_packs"]


def write_packs(storage: Storage, phase: PackPhase) -> TableRecord:
    """Write ``packs/<name>``; skip if it is up to date. Needs a Ray session.

    Raises ConfigError where there is nothing to pack, or where tables or shares do not fit.
    """
    old = runs.load_record(storage, phase.table)
    if old is not None and old.fingerprint == phase.fingerprint:
        say(f"  {phase.table:<28} up to date ({old.num_rows:,} packs)")
        remove_manifest(storage, phase)  # of a run that was killed when all was done
        return old
    started = time.time()
    said = phase.tokens_facts
    has_codebook = is_of(phase.tokenizer, said["tokenizer_id"])
    planned = plan_packs(storage, phase)
    write_shards(
        storage,
        ShardJob(
            phase.folder,
            tuple(planned["plan"]),
            tuple(component.tables for component in phase.components),
            planned["num_packs"],
            phase.coefficients,
            said["num_codes"],
        ),
    )
    if has_codebook:
        write_codebook(storage.path(f"{phase.folder}/{CODEBOOK}"), phase.tokenizer)
    facts = _facts(phase, said, planned["budget"])
    storage.write(f"{phase.folder}/{FACTS}", facts.to_json())
    part = Part(f"{runs.version_of(phase.fingerprint)}/{INDEX}", planned["num_packs"])
    record = TableRecord(
        phase.table, phase.fingerprint, phase.row_spec, "pack", (part,), planned | vars(facts)
    )
    runs.finish(storage, record, phase.spec, phase.inputs, started)
    remove_manifest(storage, phase)
    return record


def _facts(phase: PackPhase, said: dict[str, Any], budget: float | None) -> Facts:
    return Facts(
        tokenizer_id=said["tokenizer_id"],
        vocabulary_id=said["vocabulary_id"],
        num_codes=said["num_codes"],
        text_vocab_size=said["text_vocab_size"],
        level=said["level"],
        strategy=phase.packing.strategy,
        token_cap=phase.packing.token_cap,
        seed=phase.packing.seed,
        budget=budget,
        cost_unit=phase.coefficients.unit,
    )
