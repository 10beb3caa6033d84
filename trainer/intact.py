"""Packs that are damaged, or hold other ids than they say, stop a run before its first step."""

from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from infra.layout import Image, Text
from packing.reader import Pack, PackError, Packs, PackStream

FETCHES = 16  # at a time from a remote store; a local disk is read fastest by one thread


def check_shards(packs: Packs) -> None:
    """Raises PackError for a shard that is missing or shorter than the index says."""
    there = {path: size for path, size, _ in packs.storage.find()}
    index = packs.index
    ends = pc.add(index["offset"], index["length"])
    last = (
        pa.table([index["shard"], ends], ["shard", "end"])
        .group_by("shard")
        .aggregate([("end", "max")])
    )
    for shard, end in zip(last["shard"].to_pylist(), last["end_max"].to_pylist(), strict=True):
        if there.get(shard, -1) < end:
            found = f"has {there[shard]:,} bytes" if shard in there else "is not there"
            raise PackError(f"shard {shard} of {packs.storage.root} {found}, needed are {end:,}")


def check_packs(
    packs: Packs, *, rank: int, ranks: int, micro_steps: int, packs_consumed: int, steps: int
) -> None:
    """Read what the next ``steps`` of this rank will read, each pack once, by its checksum.

    All ranks must call this. Raises PackError on all of them, with the same words, if one of them
    finds a pack that is damaged or has codes or text ids beyond the packs' own vocabulary.
    """
    one_epoch = steps <= (packs.num_packs - packs_consumed) // (ranks * micro_steps)
    stream = PackStream(
        packs,
        rank=rank,
        num_ranks=ranks,
        micro_steps=micro_steps,
        packs_consumed=packs_consumed if one_epoch else 0,  # a further epoch begins at the first
        prefetch=0 if packs.storage.is_local else FETCHES,
    )
    found = ""
    try:
        for pack in islice(stream, steps * micro_steps if one_epoch else None):
            _check_ids(packs, pack)
    except PackError as error:
        found = str(error)
    of_ranks: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(of_ranks, found)
    problems = [problem for problem in of_ranks if problem]
    if problems:
        others = f" ({len(problems) - 1} more ranks found such)" if len(problems) > 1 else ""
        raise PackError(f"{packs.storage.root}: {problems[0]}{others}: pack again")


def _check_ids(packs: Packs, pack: Pack) -> None:
    segments = [segment for document in pack.documents for segment in document.segments]
    images = [segment for segment in segments if isinstance(segment, Image)]
    codes = [image.input_codes for image in images] + [image.target_codes for image in images]
    texts = [segment.ids for segment in segments if isinstance(segment, Text)]
    sizes = (packs.facts.num_codes, packs.facts.text_vocab_size)
    for what, parts, size in zip(("codes", "text ids"), (codes, texts), sizes, strict=True):
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise PackError(
                f"pack {pack.index} has {what} from {ids.min()} to {ids.max()}, its vocabulary "
                f"those in 0..{size - 1}"
            )
