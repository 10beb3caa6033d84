"""Counts for the simulator, from tables as users write them and from packs of a workspace."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra import runs
from infra.config import ConfigError
from infra.runs import Part, TableRecord
from infra.storage import Storage
from packing.cost import coefficients, qwen2_5_7b
from packing.packs import FACTS, Facts
from packing.plan import PLAN, Packing, Plan, plan
from pipelines.lengths import read_packs, read_table

PACKING = Packing("fixed_compute", 1_000, 1.2, window=64, seed=3)
COST = coefficients(qwen2_5_7b(64))


def write(path: Path, **columns: list) -> str:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_gives_its_counts(tmp_path: Path, suffix: str) -> None:
    path = write(
        tmp_path / f"l{suffix}",
        name=["a", "b"],
        num_pairs=[55, 20],
        num_tokens=[10, 5],
        num_loss=[3, 5],
    )
    found = read_table(path)
    assert found.lengths.num_tokens.tolist() == [10, 5]
    assert found.lengths.num_loss.tolist() == [3, 5]
    assert found.lengths.num_pairs.tolist() == [55, 20]
    assert (found.name, found.assumed, found.existing) == (path, "", None)


def test_lengths_alone_are_causal_texts(tmp_path: Path) -> None:
    found = read_table(write(tmp_path / "l.csv", num_tokens=[1, 4]))
    assert found.lengths.num_loss.tolist() == [0, 3]
    assert found.lengths.num_pairs.tolist() == [1, 10]
    assert found.assumed == "no num_loss and num_pairs: taken as causal texts, all predicted"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [1]}, "has no column `num_tokens` but tokens"),
        ({"num_tokens": [1, None], "name": ["a", "b"]}, "`num_tokens` has nulls"),
        ({"num_tokens": ["many"]}, "is not readable"),
        ({"num_tokens": [1.5]}, "is not readable"),
        ({"num_tokens": [3, 0]}, "row 1: 0 tokens"),
        ({"num_tokens": [3], "num_loss": [4]}, "row 0: 3 tokens, 4 with loss"),
        ({"num_tokens": [3], "num_pairs": [10]}, "and 10 pairs"),
        ({"num_tokens": [2**40]}, "row 0"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_cannot_be_is_refused(
    tmp_path: Path, suffix: str, columns: dict[str, list], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(write(tmp_path / f"l{suffix}", **columns))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.table([pa.array([3]), pa.array([4])], names=["num_tokens", "num_tokens"])
    pq.write_table(twice, tmp_path / "l.parquet")
    (tmp_path / "l.csv").write_text("num_tokens,num_loss,num_loss\n3,1,1\n")
    for name, column in (("l.parquet", "num_tokens"), ("l.csv", "num_loss")):
        with pytest.raises(ConfigError, match=f"has 2 columns `{column}`: keep one"):
            read_table(str(tmp_path / name))
    # What is not read may be there as often as it likes.
    others = pa.table([pa.array([3]), pa.array([4]), pa.array([5])], names=["num_tokens", "a", "a"])
    pq.write_table(others, tmp_path / "others.parquet")
    pa.csv.write_csv(others, tmp_path / "others.csv")
    for name in ("others.parquet", "others.csv"):
        assert read_table(str(tmp_path / name)).lengths.num_tokens.tolist() == [3]


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_table(str(tmp_path / "none.csv"))
    for name, data in (("a.parquet", b"no"), ("a.csv", b""), ("b.csv", b'num_tokens\n"1\n')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError):
            read_table(str(tmp_path / name))
    with pytest.raises(ConfigError, match="is not readable"):
        read_table(write(tmp_path / "lists.parquet", num_tokens=[[1], [2]]))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is not readable"):
        read_table(str(tmp_path / "folder.csv"))
    with pytest.raises(ConfigError, match="holds no row"):
        read_table(write(tmp_path / "l.parquet", num_tokens=pa.array([], pa.int64())))


NAMES = [f"{i:032x}" for i in range(40)]


def packed_workspace(
    root: Path, keep_run: bool = True, packing: Packing = PACKING
) -> tuple[Storage, Plan, np.ndarray]:
    """A plan of 40 documents, in two files, in which some have two copies."""
    storage = Storage(str(root))
    tokens = np.random.default_rng(0).integers(50, 400, 40)
    tokens[7] = 1_300  # over the cap
    made = plan(NAMES, tokens, tokens * 2.0, packing, copies=np.arange(40) % 3)
    rows = made.to_table(NAMES)
    for name, of in (("num_loss", tokens - 1), ("num_pairs", tokens**2)):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(of[made.document]))
    files = [f"packs/t-256/v/plan/part-{number:06d}.parquet" for number in range(2)]
    for file, part in zip(files, (rows.slice(0, 25), rows.slice(25)), strict=True):
        storage.write_part(file, part, PLAN, "row")
    facts = Facts("t", "v", 64, 100, 256, packing.strategy, packing.token_cap, packing.seed)
    storage.write(f"packs/t-256/v/{FACTS}", facts.to_json())
    told = {
        "plan": files,
        "components": [],
        "lower_bound": made.lower_bound,
        "rejected": made.rejected(),
    }
    index = Part("v/index.parquet", made.num_packs)
    record = TableRecord("packs/t-256", "g", "r", "pack", (index,), told)
    if keep_run:
        spec = {"packing": packing, "coefficients": COST}
        runs.finish(storage, record, spec, (), time.time())
    else:
        runs.save_record(storage, record)
    return storage, made, tokens


def test_packs_give_every_copy_with_its_pack(tmp_path: Path) -> None:
    storage, made, tokens = packed_workspace(tmp_path)
    found = read_packs(storage, "t-256")
    assert found.existing is not None
    assert np.array_equal(found.existing.pack, made.pack)
    assert np.array_equal(found.lengths.num_tokens, tokens[made.document])
    assert np.array_equal(found.lengths.num_pairs, tokens[made.document] ** 2)
    assert found.existing.packing == PACKING
    assert found.existing.coefficients == COST
    assert found.existing.left_out == {"over_token_cap": 1}
    assert found.existing.num_codes == 64


def test_packs_without_the_record_of_their_run_do_not_guess(tmp_path: Path) -> None:
    storage, _, _ = packed_workspace(tmp_path, keep_run=False)
    with pytest.raises(ConfigError, match=r"does not say how packs/t-256 .* --tokens-per-pack"):
        read_packs(storage, "t-256")
    existing = read_packs(storage, "t-256", 1_000).existing
    assert existing is not None
    assert existing.packing.token_cap == PACKING.token_cap
    assert existing.coefficients is None


def test_the_cap_of_packs_of_equal_length_is_their_length(tmp_path: Path) -> None:
    storage, _, _ = packed_workspace(
        tmp_path, keep_run=False, packing=Packing("fixed_length", 900, seed=3)
    )
    existing = read_packs(storage, "t-256").existing
    assert existing is not None
    assert (existing.packing.tokens_per_pack, existing.packing.token_cap) == (900, 900)


def test_packs_that_are_not_there_or_older_than_their_plan_must_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packs/none is not there"):
        read_packs(Storage(str(tmp_path)), "none")
    storage, _, _ = packed_workspace(tmp_path)
    record = runs.load_record(storage, "packs/t-256")
    assert record is not None
    older = dataclasses.replace(record, facts={"plan": "packs/t-256/v/plan.parquet"})
    runs.save_record(storage, older)
    with pytest.raises(ConfigError, match="has no counts yet: run `nextscale pack`"):
        read_packs(storage, "t-256")
