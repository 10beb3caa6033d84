"""Damaged packs and packs of other ids: one line, before anything is made, on every rank."""

import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from packing.packs import PackError, open_packs
from packing.shards import shard_name
from trainer.engine import process_group
from trainer.intact import check_packs
from trainer.train import train


def damage(folder: str, pack: int) -> None:
    """Turn one bit in the middle of a pack; no file changes its length."""
    row = open_packs(folder).index.slice(pack, 1).to_pylist()[0]
    with (Path(folder) / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["length"] // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_shards_that_are_cut_or_missing_stop_before_the_first_step(config):
    shard = Path(config.packs) / shard_name(0)
    data = shard.read_bytes()
    shard.write_bytes(data[:-5000])
    with pytest.raises(PackError, match=rf"{shard.name} .* has {len(data) - 5000:,} bytes, needed"):
        train(config)
    shard.unlink()
    with pytest.raises(PackError, match=rf"{shard.name} .* is not there"):
        train(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize("pack", range(6))
def test_any_damaged_pack_stops_before_the_first_step(config, pack):
    damage(config.packs, pack)
    with pytest.raises(PackError, match=rf"pack {pack}: the checksum differs.*: pack again$"):
        train(config)
    assert list(Path(config.output).iterdir()) == []


def test_left_out_it_is_found_where_it_is_read(config, log_of):
    damage(config.packs, 3)
    with pytest.raises(PackError, match="pack 3: the checksum differs"):
        train(replace(config, verify_packs=False))
    assert [entry["step"] for entry in log_of(config)] == [1]


@pytest.mark.parametrize(
    ("consumed", "steps", "found"),
    [(0, 2, 1), (2, 1, None), (2, 2, 4), (4, 1, 4), (2, 3, 1), (0, 100, 1)],
)
def test_only_packs_that_the_run_will_read_are_looked_at(config, consumed, steps, found):
    """Two packs a step, six an epoch; a run that goes beyond an epoch reads all of them."""
    packs = open_packs(config.packs)
    damage(config.packs, 1)
    damage(config.packs, 4)
    expected = pytest.raises(PackError, match=f"pack {found}:") if found else nullcontext()
    with process_group() as (rank, ranks, _), expected:
        check_packs(
            packs, rank=rank, ranks=ranks, micro_steps=2, packs_consumed=consumed, steps=steps
        )


@pytest.mark.parametrize(
    ("fact", "message"),
    [("num_codes", r"has codes from 0 to 9, its vocabulary those in 0\.\.4"),
     ("text_vocab_size", r"has text ids from \d to \d, its vocabulary those in 0\.\.4")],
)  # fmt: skip
def test_ids_beyond_the_vocabulary_stop_before_the_first_step(config, fact, message):
    path = Path(config.packs) / "packs.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {fact: 5}))
    with pytest.raises(PackError, match=rf"pack \d {message}"):
        train(config)
    assert list(Path(config.output).iterdir()) == []
    # If they are not looked at first, they are found where they are laid out.
    with pytest.raises(ValueError, match=r"reach from \d to \d: they must lie in 0\.\.4"):
        train(replace(config, verify_packs=False))


@pytest.mark.slow
def test_all_ranks_stop_with_the_same_line(config, launch, tmp_path, capfd):
    """Pack 3 is the second rank's: the first one learns of it, and both tell."""
    damage(config.packs, 3)
    with pytest.raises(subprocess.CalledProcessError):
        launch(tmp_path, replace(config, micro_batches=1), module="trainer.train")
    told = [line for line in capfd.readouterr().err.splitlines() if "trainer.train: " in line]
    assert len(told) == 2
    assert len(set(told)) == 1
    assert "pack 3: the checksum differs" in told[0]
    assert not (Path(config.output) / "log.jsonl").exists()
