"""States are whole or absent, and belong to one recipe."""

from pathlib import Path

import pytest
import torch

from infra.config import ConfigError
from tokenize_offline import training_state


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert training_state.load(tmp_path / "nowhere", {}) is None


def test_the_last_one_counts_and_torn_writing_does_not(tmp_path: Path) -> None:
    settings = {"learning": {"seed": 3, "fit_batches": (1, 2)}}
    for step in (1, 2):
        training_state.save(tmp_path, {"settings": settings, "step": step, "w": torch.ones(2)})
    (tmp_path / ".state.pt.writing").write_bytes(b"PK torn")
    state = training_state.load(tmp_path, {"learning": {"seed": 3, "fit_batches": [1, 2]}})
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["w"], torch.ones(2))
    training_state.save(tmp_path, {"settings": settings, "step": 3})
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
    training_state.save(tmp_path, {"settings": {"a": {"b": 1}, "c": 1}})
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
