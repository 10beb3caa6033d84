"""Coefficients from times: known ones come back, zero ones stay zero, damaged files are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import ConfigError
from packing.calibration import Calibration, Fitted, fit, read_calibration, write_calibration
from packing.cost import Coefficients, ModelShape, coefficients, cost, qwen2_5_7b
from packing.plan import Packing, plan

OF = Coefficients(3e-5, 2e-8, 1e-5, 0.04, "s")
SHAPE = ModelShape(8, 1, 1, 1, 8, 8, 8)


def counts(number=40, seed=0):
    """Tokens, targets and pairs of packs that differ in all three."""
    draw = np.random.default_rng(seed)
    tokens = np.exp(draw.uniform(4, 9, number)).astype(np.int64)
    return (
        tokens,
        (tokens * draw.uniform(0, 1, number)).astype(np.int64),
        (tokens * tokens * draw.uniform(0.1, 0.9, number)).astype(np.int64),
    )


def numbers(of):
    return [of.per_token, of.per_pair, of.per_loss, of.per_pack]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 9))
def test_exact_times_give_the_coefficients_back_zeros_included(factors, seed):
    parts = [f * n if f > 0.01 else 0.0 for f, n in zip(factors, numbers(OF), strict=True)]
    of = Coefficients(*parts, "s")
    packs = counts(seed=seed)
    time_s = cost(*packs, of) + of.per_pack
    if not of.per_token + of.per_pair > 0:
        return
    fitted = fit(*packs, time_s)
    assert numbers(fitted.coefficients) == pytest.approx(parts, rel=1e-6, abs=1e-15)
    assert fitted.residual < 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_fit_is_the_best_non_negative_one(seed):
    """The conditions of Karush, Kuhn and Tucker, which only the optimum meets."""
    draw = np.random.default_rng(seed)
    packs = counts(20, seed)
    time_s = np.exp(draw.normal(-3, 1.5, 20))  # nothing to do with the counts
    try:
        fitted = fit(*packs, time_s)
    except ValueError:  # times that need neither tokens nor pairs
        return
    tokens, loss, pairs = packs
    columns = np.stack([tokens, pairs, loss, np.ones(20)], axis=1) / time_s[:, None]
    columns /= np.linalg.norm(columns, axis=0)
    x = numbers(fitted.coefficients) * np.linalg.norm(
        np.stack([tokens, pairs, loss, np.ones(20)], axis=1) / time_s[:, None], axis=0
    )
    gradient = columns.T @ (columns @ x - 1)
    assert (x >= 0).all()
    assert (gradient > -1e-8).all()
    assert np.abs(gradient[x > 0]).max() < 1e-8


def test_short_and_long_packs_count_alike():
    packs = counts(200)
    exact = cost(*packs, OF) + OF.per_pack
    noise = np.random.default_rng(1).normal(1, 0.05, 200)
    fitted = fit(*packs, exact * noise)
    assert numbers(fitted.coefficients) == pytest.approx(numbers(OF), rel=0.25)
    again = cost(*packs, fitted.coefficients) + fitted.coefficients.per_pack
    short = exact < np.quantile(exact, 0.1)
    assert np.abs(again / exact - 1)[short].mean() < 0.05
    assert 0.02 < fitted.residual < 0.05


def test_packs_that_grow_alike_are_refused():
    tokens = np.arange(100, 2000, 100)
    with pytest.raises(ValueError, match="grow alike"):
        fit(tokens, tokens - 1, tokens * 50, tokens * 1e-4)
    with pytest.raises(ValueError, match="some with targets"):
        fit(tokens, tokens * 0, tokens**2, tokens * 1e-4)
    with pytest.raises(ValueError, match="at least 4"):
        fit(tokens[:3], tokens[:3], tokens[:3] ** 2, tokens[:3] * 1e-4)
    with pytest.raises(ValueError, match="positive"):
        fit(*counts(), np.zeros(40))


def test_packs_planned_with_the_calibration_balance_the_calibrated_time():
    """Theory balances FLOPs; where the machine's pairs are dearer, only its own seconds balance."""
    machine = Coefficients(1e-5, 4e-8, 1e-6, 0.02, "s")
    packs = counts(60)
    measured = fit(*packs, cost(*packs, machine) + machine.per_pack).coefficients
    tokens, loss, pairs = counts(4_000, seed=2)
    tokens, loss, pairs = (column[tokens < 5_000] for column in (tokens, loss, pairs))
    names = [f"d{i}" for i in range(len(tokens))]

    def imbalance(of):
        made = plan(names, tokens, cost(tokens, loss, pairs, of), Packing(token_slack=2.0))
        inside = made.pack >= 0
        rows = made.document[inside]
        time_s = cost(tokens[rows], loss[rows], pairs[rows], machine)
        per_pack = np.bincount(made.pack[inside], time_s)
        return per_pack.max() / per_pack.mean()

    theory = coefficients(qwen2_5_7b())
    assert imbalance(measured) < 1.05
    assert imbalance(theory) > 1.2


CALIBRATION = Calibration(Fitted(OF, 24, 0.02, 9.5), SHAPE, "cpu", "float32", 1, 2, 1, False)


def test_a_file_reads_back_and_has_the_same_bytes_each_time(tmp_path):
    paths = [tmp_path / "deep" / name for name in ("a.json", "b.json")]
    for path in paths:
        write_calibration(str(path), CALIBRATION)
        assert read_calibration(str(path)) == OF
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"per_token": 1.0}',
        b"{" * 2_000,
        lambda tree: tree | {"format": "another"},
        lambda tree: tree | {"extra": 1},
        lambda tree: {key: tree[key] for key in tree if key != "device"},
        lambda tree: tree | {"fitted": tree["fitted"] | {"residual": "low"}},
        lambda tree: with_coefficient(tree, "per_pair", -1.0),
        lambda tree: with_coefficient(tree, "per_pair", float("nan")),
        lambda tree: with_coefficient(tree, "per_loss", float("inf")),
        lambda tree: with_coefficient(tree, "unit", "FLOP"),
        lambda tree: tree | {"model": tree["model"] | {"hidden": 0}},
    ],
)
def test_a_foreign_or_damaged_file_is_told_in_one_line(tmp_path, damage):
    path = tmp_path / "calibration.json"
    write_calibration(str(path), CALIBRATION)
    if callable(damage):
        damage = json.dumps(damage(json.loads(path.read_bytes()))).encode()
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"calibration\.json") as error:
        read_calibration(str(path))
    assert "\n" not in str(error.value)


def with_coefficient(tree, name, value):
    fitted = tree["fitted"]
    return tree | {"fitted": fitted | {"coefficients": fitted["coefficients"] | {name: value}}}


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(ConfigError, match="nextscale calibrate"):
        read_calibration(str(tmp_path / "none.json"))


def test_coefficients_without_tokens_and_pairs_are_refused():
    with pytest.raises(ValueError, match="neither"):
        replace(CALIBRATION.fitted, coefficients=Coefficients(0.0, 0.0, 1.0, 1.0, "s"))
