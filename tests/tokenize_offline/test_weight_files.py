"""Whatever bytes a file has, it is read or refused in one line; content is told without paths."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tokenize_offline.weight_files import content, read_torch, read_weights

KINDS = ("new.pth", "old.pth", "other.safetensors")
WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2], dtype=torch.int64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(WEIGHTS, folder / "new.pth")
    torch.save(WEIGHTS, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, folder / "other.safetensors")
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_are_read(folder: Path, name: str) -> None:
    stored = read_weights(folder / name)
    assert stored.keys() == WEIGHTS.keys()
    assert all(torch.equal(stored[key], value) for key, value in WEIGHTS.items())


def read_or_told(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        return read_weights(path), ""
    except ValueError as error:
        return {}, str(error)


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=300, deadline=None)
def test_torn_and_altered_files_are_refused_in_one_line(
    folder: Path, name: str, data: st.DataObject
) -> None:
    whole = (folder / name).read_bytes()
    altered = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(altered) - 1)), max_size=5)):
        altered[place : place + 1] = data.draw(st.binary(min_size=1, max_size=3))
    path = folder / f"altered-{name}"
    path.write_bytes(altered)
    stored, told = read_or_told(path)
    assert all(isinstance(value, torch.Tensor) for value in stored.values())
    assert bool(told) != bool(stored) or altered == b""
    assert "\n" not in told
    assert len(told) < 300


@pytest.mark.parametrize("data", [b"", b"no weights", b"<html>404</html>", b"\x80\x02}q\x00."])
def test_other_files_are_no_weights(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.pth").write_bytes(data)
    with pytest.raises(ValueError, match="it is no file of PyTorch's"):
        read_torch(tmp_path / "junk.pth")


@pytest.mark.parametrize("stored", [torch.zeros(2), {"a": 1}, [torch.zeros(2)]])
def test_what_is_no_state_dict_is_told(tmp_path: Path, stored: object) -> None:
    torch.save(stored, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="it holds no weights by name"):
        read_weights(tmp_path / "w.pth")


def test_content_is_of_names_and_values() -> None:
    assert content(None) == "none"
    torch.manual_seed(0)
    one, same = nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)
    same.load_state_dict(one.state_dict())
    assert content(one) == content(same.to(memory_format=torch.channels_last))
    assert content(one) != content(nn.Sequential(one))
    assert content(one) != content(nn.Conv2d(3, 4, 2))
    with torch.no_grad():
        same.bias[0] += 1e-6
    assert content(one) != content(same)
