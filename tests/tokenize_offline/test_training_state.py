"""States are whole or absent, and belong to one recipe."""

from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from tokenize_offline import training_state

STATE = {"stage": "joint", "step": 1, "seconds": 0.0, "networks": {}, "optimiser": {}}


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert training_state.load(tmp_path / "nowhere", {}) is None


def test_the_last_one_counts_and_torn_writing_does_not(tmp_path: Path) -> None:
    settings = {"learning": {"seed": 3, "fit_batches": (1, 2)}}
    for step in (1, 2):
        state = STATE | {"settings": settings, "step": step, "networks": torch.ones(2)}
        training_state.save(tmp_path, state)
    (tmp_path / ".state.pt.writing").write_bytes(b"PK torn")
    loaded = training_state.load(tmp_path, {"learning": {"seed": 3, "fit_batches": [1, 2]}})
    assert loaded is not None
    assert loaded["step"] == 2
    assert torch.equal(loaded["networks"], torch.ones(2))
    training_state.save(tmp_path, STATE | {"settings": settings, "step": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"a": {"b": 2}, "c": 1}, "has a.b 1, this recipe 2"),
        ({"a": {"b": 1}}, "has c 1, this recipe None"),
        ({"a": {"b": 1}, "c": 1, "d": 5}, "has d None, this recipe 5"),
    ],
)
def test_the_first_difference_is_named(
    tmp_path: Path, ours: dict[str, object], message: str
) -> None:
    training_state.save(tmp_path, STATE | {"settings": {"a": {"b": 1}, "c": 1}})
    with pytest.raises(ConfigError, match=message):
        training_state.load(tmp_path, ours)


def test_one_training_at_a_time(tmp_path: Path) -> None:
    with (
        training_state.held(tmp_path),
        pytest.raises(ConfigError, match="another training writes to"),
        training_state.held(tmp_path),
    ):
        pytest.fail("two at a time")
    with training_state.held(tmp_path):
        pass


@pytest.mark.parametrize("damage", ["empty", "junk", "torn", "altered", "of another kind"])
def test_a_damaged_state_is_told_with_its_remedy(tmp_path: Path, damage: str) -> None:
    training_state.save(tmp_path, STATE | {"settings": {}, "networks": torch.arange(999)})
    path = tmp_path / "state.pt"
    data = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "of another kind":
        torch.save({"weights": torch.ones(2)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"\x00 no state at all")
    with pytest.raises(
        ConfigError, match=r"state\.pt cannot be gone on from, it .*remove"
    ) as caught:
        training_state.load(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told() -> None:
    with (
        pytest.raises(ConfigError, match=r"/dev/null/x cannot be written .*choose another folder"),
        training_state.held(Path("/dev/null/x")),
    ):
        pytest.fail("held")
