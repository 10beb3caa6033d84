"""The nsfwjs network on everyday photographs, and files that are not its weights."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.pixels import Pixels, decode, to_struct
from infra.runs import describe
from infra.schema import ERROR
from operators.nsfw import Nsfw, _as_input


@pytest.fixture(scope="module")
def weights(assets: Path) -> Path:
    return assets / "weights/nsfw_mobilenetv2_fp16.safetensors"


@pytest.fixture(scope="module")
def nsfw(weights: Path) -> Nsfw:
    return Nsfw(weights=str(weights), batch_rows=8)


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


def read(path: Path) -> Pixels:
    return decode(path.read_bytes(), 512).rgb


def test_everyday_photographs_are_harmless(nsfw: Nsfw, assets: Path) -> None:
    names = ["lomiri_wine.jpg", "skimage_chelsea.png", "skimage_astronaut.png", "mdn_painted.jpg"]
    folder = assets / "images"
    paths = [*sorted(folder.glob("coco_*.jpg")), *(folder / name for name in names)]
    batch = nsfw(table([read(path) for path in paths]))
    scores = dict(zip((path.name for path in paths), batch["nsfw"].to_pylist(), strict=True))
    sexy = dict(zip(scores, batch["nsfw_sexy"].to_pylist(), strict=True))
    assert max(scores.values()) < 0.1
    assert all(0 <= scores[name] + sexy[name] <= 1 + 1e-6 for name in scores)
    # Known false alarms: a clothed woman on a bench, a bottle of wine, a pitcher at play.
    assert sexy["coco_10069.jpg"] > 0.9
    found = {name for name, score in sexy.items() if score > 0.5}
    assert found == {"coco_10069.jpg", "lomiri_wine.jpg", "coco_10309.jpg"}


def test_the_network_is_the_published_one(nsfw: Nsfw, weights: Path, assets: Path) -> None:
    """Against the stored layers one by one, batch normalisations not folded."""
    stored = {name: tensor.float() for name, tensor in load_file(weights).items()}
    functional = torch.nn.functional

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (stored[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts, eps=1e-3)

    def reference(image: torch.Tensor) -> torch.Tensor:
        pad, conv = functional.pad, functional.conv2d
        x = normalised(conv(pad(image, (0, 1, 0, 1)), stored["conv1.weight"], stride=2), "bn1")
        x = x.clamp(0, 6)
        for i in range(17):
            block, wide = f"blocks.{i}", x
            if f"{block}.expand.weight" in stored:
                wide = conv(x, stored[f"{block}.expand.weight"])
                wide = normalised(wide, f"{block}.expand_bn").clamp(0, 6)
            kernel = stored[f"{block}.dw.weight"]
            stride = 2 if i in (1, 3, 6, 13) else 1
            wide = pad(wide, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            wide = conv(wide, kernel, stride=stride, groups=len(kernel))
            wide = normalised(wide, f"{block}.dw_bn").clamp(0, 6)
            narrow = conv(wide, stored[f"{block}.project.weight"])
            narrow = normalised(narrow, f"{block}.project_bn")
            x = x + narrow if narrow.shape == x.shape else narrow
        x = normalised(conv(x, stored["conv_last.weight"]), "bn_last").clamp(0, 6).mean((2, 3))
        for i in range(3):
            x = functional.linear(x, stored[f"fc.{i}.weight"], stored[f"fc.{i}.bias"])
            x = x.relu() if i < 2 else x.softmax(-1)
        return x

    for name in ("coco_10069.jpg", "lomiri_wine.jpg", "skimage_chelsea.png", "coco_10432.jpg"):
        image = _as_input(read(assets / "images" / name))[None]
        with torch.inference_mode():
            assert torch.allclose(nsfw._network(image), reference(image), atol=2e-5), name


def test_a_row_does_not_depend_on_its_batch(nsfw: Nsfw, photos: Path) -> None:
    pictures = [read(path) for path in sorted(photos.glob("*.jpg"))]
    together = nsfw(table(list(pictures))).select(Nsfw.writes.names)
    for i, rgb in enumerate(pictures):
        assert nsfw(table([rgb])).select(Nsfw.writes.names).equals(together.slice(i, 1))


def test_failed_rows_stay_empty_and_nothing_loads_for_them(weights: Path, photos: Path) -> None:
    operator = Nsfw(weights=str(weights))
    assert operator(table([])).column_names == ["image", "error", "nsfw", "nsfw_sexy"]
    failed = {"stage": "probe", "type": "empty", "message": ""}
    batch = table([read(photos / "rocket.jpg"), None])
    batch = operator(batch.set_column(1, ERROR, pa.array([failed, None], ERROR.type)))
    assert "_network" not in vars(operator)
    for field in Nsfw.writes:
        assert batch[field.name].to_pylist() == [None, None]
        assert batch.schema.field(field.name).equals(field, check_metadata=True)


def test_pickles_without_its_weights(nsfw: Nsfw, photos: Path) -> None:
    one = table([read(photos / "rocket.jpg")])
    before = nsfw(one)
    data = pickle.dumps(nsfw)
    assert len(data) < 1000
    assert pickle.loads(data)(one).equals(before)


def test_identity_is_the_content(nsfw: Nsfw, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert describe(Nsfw(weights=str(copy), batch_rows=8)) == describe(nsfw)


def test_mistakes_are_told_before_work(weights: Path, tmp_path: Path) -> None:
    remedy = "nsfwjs with operators/weights/make_nsfw.py"
    with pytest.raises(ValueError, match=rf"no/such\.file does not exist: .*{remedy}"):
        describe(Nsfw(weights="no/such.file"))
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match=rf"page\.html is no safetensors file .*{remedy}"):
        describe(Nsfw(weights=str(tmp_path / "page.html")))
    tensors = load_file(weights)
    del tensors["blocks.3.dw_bn.bias"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"lacks blocks\.3\.dw_bn\.bias: .*{remedy}"):
        describe(Nsfw(weights=str(tmp_path / "part.safetensors")))
    with pytest.raises(ValueError, match="`weights` is empty"):
        Nsfw(weights="")
    with pytest.raises(ValueError, match="batch_rows is 0"):
        Nsfw(weights="w", batch_rows=0)
