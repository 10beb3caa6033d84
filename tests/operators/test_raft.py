"""Weights of RAFT: the carried ones, those of others, and files that are none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.runs import describe
from operators.flow import Flow
from operators.raft import CARRIED, load


def test_carried_weights_are_the_published_ones(assets: Path) -> None:
    published = load_file(assets / "weights/raft_small_tv.safetensors")
    carried = load_file(CARRIED)
    assert carried.keys() == published.keys()
    assert all(torch.equal(carried[name], published[name].half()) for name in carried)


def test_loading_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network = load("raft_small", str(CARRIED), "cpu")
    assert torch.equal(torch.rand(3), expected)
    assert load("raft_small", str(CARRIED), "cpu") is network
    assert not network.training
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_identity_is_the_content(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(CARRIED.read_bytes())
    assert describe(Flow(weights=str(copy))) == describe(Flow())
    tensors = load_file(copy)
    tensors["update_block.flow_head.conv2.bias"] += 1
    save_file(tensors, copy)
    assert describe(Flow(weights=str(copy))) != describe(Flow())
    as_published = tmp_path / "raft.pth"
    torch.save({name: tensor.float() for name, tensor in load_file(CARRIED).items()}, as_published)
    Flow(weights=str(as_published)).identity  # noqa: B018
    assert describe(Flow(method="dis"))["identity"] == ""
    # The name of torchvision's download ends with its hash; nothing is loaded to tell it.
    assert Flow(weights="torchvision").identity.startswith("raft_small_C_T_V2-")
    assert Flow(method="raft_large", weights="torchvision").identity.startswith("raft_large_C_T_")


def missing(path: Path) -> None:
    path.unlink()


def page(path: Path) -> None:
    path.write_text("<html>")


def part(path: Path) -> None:
    tensors = load_file(path)
    del tensors["context_encoder.conv.bias"]
    save_file(tensors, path)


def wrong_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["context_encoder.conv.bias"] = tensors["context_encoder.conv.bias"][:3].clone()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (missing, "does not exist"),
        (page, "is no file of weights"),
        (part, "lacks context_encoder.conv.bias"),
        (wrong_shape, r"has context_encoder.conv.bias of \[3\] instead of \[160\]"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_wrong_weights_are_told_before_work(
    damage: Callable[[Path], None], told: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(CARRIED.read_bytes())
    damage(path)
    if ending == "pth" and damage in (part, wrong_shape):
        tensors = load_file(path)
        torch.save(tensors, tmp_path / "w.pth")
    elif ending == "pth" and damage is page:
        path.rename(tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=rf"^weights .*w\.{ending} {told}.*README\.md\)$"
    ) as raised:
        describe(Flow(weights=str(tmp_path / f"w.{ending}")))
    assert "\n" not in str(raised.value)


def test_another_networks_weights_are_told() -> None:
    with pytest.raises(ValueError, match=r"has feature_encoder.*instead of.*raft_large"):
        describe(Flow(method="raft_large", weights=str(CARRIED)))
