"""``nextscale simulate``: what it prints and draws, and what it refuses."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.config import ConfigError
from packing.simulate import Lengths
from packing.strategies import Packing
from pipelines.lengths import Documents, Existing
from pipelines.scenario import Scenario, run
from pipelines.simulate import describe, main
from pipelines.simulate_page import write_simulation

EVIL = "<script>alert(1)</script>"


def documents(n: int = 600, name: str = "lengths") -> Documents:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(n) < 0.1, 3_700, rng.integers(20, 500, n))
    return Documents(name, Lengths(tokens, tokens - 1, tokens * (tokens + 1) // 2))


SMALL = Scenario(ranks=(4, 2, 500), tokens_per_pack=8_000, token_cap_ratios=(1.0, 1.25))


def test_every_way_on_every_number_of_ranks() -> None:
    result = run(documents(), SMALL)
    names = [outcome.name for outcome in result.outcomes]
    assert names == ["batch_padding", "fixed_length", "fixed_compute 1.0", "fixed_compute 1.25"]
    for outcome in result.outcomes:
        assert outcome.runs[500] is None
        for ranks in (2, 4):
            found = outcome.runs[ranks]
            assert found is not None
            assert found.num_ranks == ranks
            assert 0 < found.efficiency <= 1 + 1e-9
    assert result.relative(result.outcomes[1], 4) == 1.0
    balanced, padded = (result.relative(result.outcomes[i], 4) for i in (3, 0))
    assert balanced is not None
    assert padded is not None
    assert padded < 1 < balanced
    again = run(documents(), SMALL)
    assert list(describe(again)) == list(describe(result))


def test_more_barriers_never_help() -> None:
    loose, tight = (
        run(documents(), dataclasses.replace(SMALL, ranks=(4,), micro_steps=2, zero=zero))
        for zero in (2, 3)
    )
    for one, other in zip(loose.outcomes, tight.outcomes, strict=True):
        before, after = one.runs[4], other.runs[4]
        assert before is not None
        assert after is not None
        assert after.throughput <= before.throughput * (1 + 1e-9)


def test_existing_packs_run_as_they_are() -> None:
    found = documents(60)
    pack = np.arange(60) % 15
    pack[0] = -1
    packing = Packing("fixed_length", 20_000)
    existing = Existing("packs/a-256", pack, packing, 9, {"over_token_cap": 1}, 64, None)
    result = run(dataclasses.replace(found, existing=existing), Scenario(ranks=(4,)))
    first = result.outcomes[0]
    assert first.name == "packs/a-256 as it is"
    assert first.packed.num_packs == 15
    assert first.packed.num_documents.sum() == 59
    assert result.tokens_per_pack == 20_000
    assert "1 over_token_cap" in "\n".join(describe(result))


@pytest.mark.parametrize(
    ("preset", "note"),
    [
        ("qwen2.5-7b", ""),
        ("qwen2.5-0.5b", "packed for another cost model; the bound is of that one"),
        (None, "packed for a cost model that is not on record; the bound is of that one"),
    ],
)
def test_a_bound_of_another_cost_model_is_called_so(
    tmp_path: Path, preset: str | None, note: str
) -> None:
    of = Scenario(preset=preset).coefficients(64) if preset else None
    packing = Packing("fixed_compute", 20_000)
    existing = Existing("packs/a-256", np.arange(60) % 15, packing, 9, {}, 64, of)
    found = dataclasses.replace(documents(60), existing=existing)
    result = run(found, Scenario(ranks=(1,)))
    assert [outcome.note for outcome in result.outcomes] == [note, *[""] * 5]
    page = Path(write_simulation(result, str(tmp_path / "page.html"))).read_text()
    told = "\n".join(describe(result))
    assert ("packed for" in told, "packed for" in page) == (bool(note), bool(note))
    assert f"packs/a-256 as it is: {note}" in told or not note
    # Costs decide nothing where packs have no budget.
    equal = dataclasses.replace(existing, packing=Packing("fixed_length", 20_000))
    result = run(dataclasses.replace(found, existing=equal), Scenario(ranks=(1,)))
    assert result.outcomes[0].note == ""


def test_one_is_no_plural(tmp_path: Path) -> None:
    one = Documents("one", Lengths(np.array([9]), np.array([8]), np.array([45])))
    result = run(one, Scenario(ranks=(1, 2), tokens_per_pack=9))
    page = Path(write_simulation(result, str(tmp_path / "page.html"))).read_text()
    for text in ("\n".join(describe(result)), page):
        assert "1 document" in text
        assert "1 rank" in text
        assert not re.search(r"\b1 (documents|ranks|packs)", text)
    with pytest.raises(ConfigError, match=r"1 pack at most, .* of 2 ranks and 1 micro-step:"):
        run(one, Scenario(ranks=(2,)))


def test_the_largest_packs_are_simulated(tmp_path: Path) -> None:
    most = Scenario(ranks=(1,), tokens_per_pack=2**31 - 1, token_cap_ratios=(1.0,), tflops=1e6)
    result = run(documents(), most)
    assert [outcome.packed.num_packs for outcome in result.outcomes] == [150, 1, 1]
    assert write_simulation(result, str(tmp_path / "page.html"))


def test_large_packs_and_large_ratios_are_refused() -> None:
    packing = Packing("fixed_compute", 2**31 - 1, 1.0)
    existing = Existing("packs/a-256", np.zeros(600, np.int64), packing, 1, {}, 64, None)
    with pytest.raises(ConfigError, match=r"token_slack 1\.1: their product"):
        run(dataclasses.replace(documents(), existing=existing), Scenario(ranks=(1,)))


def test_the_page_shows_bars_and_shares(tmp_path: Path) -> None:
    result = run(documents(name=EVIL), dataclasses.replace(SMALL, tflops=120.0))
    path = write_simulation(result, str(tmp_path / "page.html"))
    page = Path(path).read_text()
    assert EVIL not in page
    assert "default-src &#39;none&#39;" in page
    assert page.count("<h3>") == 4 + 2  # timelines on the fewest ranks; tables of 2 and 4 ranks
    assert "its packs fill no step" not in page
    for width in re.findall(r'width="([-0-9.e]+)"', page):
        assert 0 <= float(width) <= 960
    fast = result.outcomes[-1].runs[2]
    assert fast is not None
    assert f"{result.tokens_per_s(fast):,.0f}" in page
    assert write_simulation(result, str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text() == page


def test_the_page_draws_a_part_of_many_ranks_and_every_micro_step(tmp_path: Path) -> None:
    many = dataclasses.replace(SMALL, ranks=(20,), micro_steps=2, zero=3)
    page = Path(write_simulation(run(documents(), many), str(tmp_path / "page.html"))).read_text()
    assert "The first steps on 20 ranks (12 of them drawn)" in page
    assert "a dashed line ends a micro-step" in page
    assert len(re.findall('class="track"', page)) == 4 * 12
    assert "micro-step 1, rank 11: " in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = str(tmp_path / "lengths.parquet")
    pq.write_table(pa.table({"num_tokens": documents().lengths.num_tokens}), lengths)
    main(lengths, str(tmp_path / "workspace"), SMALL)
    told = capsys.readouterr().out
    page = tmp_path / "lengths-simulation.html"
    assert told.splitlines()[-1] == str(page)
    assert "taken as causal texts" in told
    assert "taken as causal texts" in page.read_text()
    elsewhere = str(tmp_path / "elsewhere.html")
    main(lengths, str(tmp_path), SMALL, elsewhere)
    assert capsys.readouterr().out.splitlines()[-1] == elsewhere
    with pytest.raises(ConfigError, match="too few for a step of 900 ranks"):
        main(lengths, str(tmp_path), Scenario(ranks=(900,)))
    with pytest.raises(ConfigError, match="no document fits a pack of 10 tokens"):
        main(lengths, str(tmp_path), Scenario(tokens_per_pack=10))
    with pytest.raises(ConfigError, match="packs/none is not there"):
        main("packs/none", str(tmp_path), SMALL)


def test_a_page_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the documents were packed before the page was looked at")

    monkeypatch.setattr("pipelines.simulate.run", work)
    lengths = str(tmp_path / "lengths.parquet")
    pq.write_table(pa.table({"num_tokens": [1, 2, 3]}), lengths)
    (tmp_path / "file").touch()
    (tmp_path / "lengths-simulation.html").mkdir()
    for output in (str(tmp_path), str(tmp_path / "file" / "page.html"), None):
        with pytest.raises(ConfigError):
            main(lengths, str(tmp_path), SMALL, output)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": ()},
        {"ranks": (0,)},
        {"micro_steps": 0},
        {"zero": 4},
        {"token_cap_ratios": (0.9,)},
        {"preset": "gpt"},
        {"tflops": -1.0},
        {"tflops": float("nan")},
        {"tflops": 1e300},
        {"tflops": 1e-300},
        {"token_cap_ratios": ()},
        {"token_cap_ratios": (float("nan"),)},
        {"token_cap_ratios": (1.0, float("nan"))},
        {"token_cap_ratios": (float("inf"),)},
        {"token_cap_ratios": (1e9,)},
        {"tokens_per_pack": 10**13},
        {"tokens_per_pack": 10**400},
        {"tokens_per_pack": 2**31 - 1},
        {"seed": 2**63},
        {"batch_size": 0},
        {"seed": -1},
        {"tokens_per_pack": 0},
    ],
)
def test_impossible_scenarios_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Scenario(**wrong)
