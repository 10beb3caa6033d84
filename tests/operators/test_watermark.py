"""A small network through torch.export: the same numbers, and files that do not fit."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from infra.pixels import Pixels, decode, to_struct
from infra.runs import describe
from infra.schema import ERROR
from operators.watermark import Watermark

SIZE, ROWS = 48, 4


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers, *head).eval()


@pytest.fixture(scope="module")
def programs(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The network for exactly ROWS rows, and for any number of them."""
    folder = tmp_path_factory.mktemp("programs")
    rows: dict[str, Any] = {"fixed": None, "dynamic": ({0: torch.export.Dim("rows")},)}
    for name, shapes in rows.items():
        images = torch.zeros(ROWS, 3, SIZE, SIZE)
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.pt2")
    return {name: str(folder / f"{name}.pt2") for name in rows}


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels]:
    return [decode(path.read_bytes(), 96).rgb for path in sorted(photos.glob("*.png"))]


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


def scores(operator: Watermark, pictures: list[Pixels]) -> list[float]:
    found: list[float] = operator(table(list(pictures)))["watermark"].to_pylist()
    return found


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_bit_for_bit_the_network(
    network: nn.Module,
    programs: dict[str, str],
    pictures: list[Pixels],
    kind: str,
    activation: Any,
) -> None:
    operator = Watermark(
        program=programs[kind], size=SIZE, output=2, activation=activation, batch_rows=ROWS
    )
    batch = torch.zeros(ROWS, 3, SIZE, SIZE)
    for row, rgb in enumerate(pictures[:ROWS]):
        batch[row] = operator._prepare(rgb)
    with torch.inference_mode():
        logits = network(batch)
        shares = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)
    expected = shares[: len(pictures), 2].tolist()
    assert scores(operator, pictures[:ROWS]) == expected
    assert len(set(expected)) == len(expected)
    # alone as in company
    assert [scores(operator, [rgb])[0] for rgb in pictures[:ROWS]] == expected


def test_the_whole_picture_goes_in_normalised(programs: dict[str, str]) -> None:
    operator = Watermark(
        program=programs["dynamic"], size=SIZE, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 0.1)
    )
    rgb = np.zeros((96, 480, 3), np.uint8)
    rgb[:, -10:] = (255, 255, 51)  # a corner mark that a centre crop would lose
    image = operator._prepare(rgb)
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert image[:, 0, -1].tolist() == pytest.approx([1.0, 0.75, 2.0])
    assert image[:, 0, 0].tolist() == pytest.approx([-1.0, -0.25, 0.0])


def test_failed_rows_stay_empty_and_nothing_loads_for_them(programs: dict[str, str]) -> None:
    operator = Watermark(program=programs["fixed"], size=SIZE, batch_rows=ROWS)
    batch = operator(table([None, None]))
    assert batch["watermark"].to_pylist() == [None, None]
    assert batch.schema.field("watermark").equals(Watermark.writes[0], check_metadata=True)
    assert operator(table([]))["watermark"].type == pa.float32()
    assert "_network" not in vars(operator)


def test_pickles_without_its_network(programs: dict[str, str], pictures: list[Pixels]) -> None:
    operator = Watermark(program=programs["fixed"], size=SIZE, batch_rows=ROWS)
    before = scores(operator, pictures)
    data = pickle.dumps(operator)
    assert len(data) < 1000
    assert scores(pickle.loads(data), pictures) == before


def test_identity_is_the_content(programs: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(Path(programs["fixed"]).read_bytes())
    first, second = (
        describe(Watermark(program=path, size=SIZE, batch_rows=ROWS))
        for path in (programs["fixed"], str(copy))
    )
    assert first == second
    other = Watermark(program=programs["dynamic"], size=SIZE, batch_rows=ROWS)
    assert describe(other)["identity"] != first["identity"]


def test_programs_that_do_not_fit_are_told_before_work(
    programs: dict[str, str], tmp_path: Path
) -> None:
    fixed = programs["fixed"]
    wrong = {
        "takes batches of 4: set batch_rows to 4": Watermark(program=fixed, size=SIZE),
        r"takes images of \[3, 48, 48\], not \[3, 64, 64\]": Watermark(program=fixed, size=64),
        r"gives \[3\] per image: output 3 is none": Watermark(
            program=fixed, size=SIZE, batch_rows=ROWS, output=3
        ),
        "does not exist: make it with torch.export.save": Watermark(program="no/such.pt2"),
    }
    (tmp_path / "text.pt2").write_text("no archive")
    wrong["is no exported program"] = Watermark(program=str(tmp_path / "text.pt2"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    wrong["an archive of another kind"] = Watermark(program=str(tmp_path / "weights.pt"))
    for message, operator in wrong.items():
        with pytest.raises(ValueError, match=message) as raised:
            describe(operator)
        assert "\n" not in str(raised.value)


def test_a_damaged_program_is_told_in_one_line(programs: dict[str, str], tmp_path: Path) -> None:
    data = Path(programs["fixed"]).read_bytes()
    place = data.index(b'"graph_module"')
    (tmp_path / "bad.pt2").write_bytes(data[:place] + b'"graph_mudole"' + data[place + 14 :])
    with pytest.raises(ValueError, match=r"bad\.pt2 does not load") as raised:
        describe(Watermark(program=str(tmp_path / "bad.pt2"), size=SIZE, batch_rows=ROWS))
    assert "\n" not in str(raised.value)


def test_outputs_that_are_no_probabilities_are_told(
    programs: dict[str, str], pictures: list[Pixels]
) -> None:
    operator = Watermark(program=programs["dynamic"], size=SIZE, activation="none")
    with torch.inference_mode():
        logits = operator._network(operator._prepare(pictures[0])[None])[0].tolist()
    output = int(np.argmin(logits))
    assert logits[output] < 0  # the network's own logits are no probabilities
    operator = Watermark(program=programs["dynamic"], size=SIZE, activation="none", output=output)
    with pytest.raises(ValueError, match="no probability: choose activation sigmoid or softmax"):
        operator(table([pictures[0]]))


def test_mistakes_are_told() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "`program` is empty": {"program": ""},
        "size is 0": {"size": 0},
        "output is -1": {"output": -1},
        r"std is \(1.0, 0.0, 1.0\)": {"std": (1.0, 0.0, 1.0)},
        "activation is 'relu'": {"activation": "relu"},
        "batch_rows is 0": {"batch_rows": 0},
    }
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            Watermark(**({"program": "p.pt2"} | options))
