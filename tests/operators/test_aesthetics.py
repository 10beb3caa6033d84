"""NIMA on real photographs; LAION heads on real feature vectors."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from infra.pixels import Pixels, decode, resize_crop, to_struct
from infra.schema import ERROR
from operators.aesthetics import Aesthetics, load_head


def table(pictures: list[Pixels | None]) -> pa.Table:
    return pa.table({"image": to_struct(pictures), "error": pa.nulls(len(pictures), ERROR.type)})


@pytest.fixture(scope="module")
def nima() -> Aesthetics:
    return Aesthetics(batch_rows=4)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Pixels]:
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg"]
    return [decode((photos / name).read_bytes(), 512).rgb for name in names]


def scores(operator: Aesthetics, pictures: list[Pixels]) -> list[float]:
    found: list[float] = operator(table(list(pictures)))["aesthetic"].to_pylist()
    return found


def test_photographs_rate_above_their_ruins(nima: Aesthetics, pictures: list[Pixels]) -> None:
    ruined = []
    for rgb in pictures:
        h, w = rgb.shape[:2]
        tiny = resize_crop(rgb, h * 48 // min(h, w), w * 48 // min(h, w))[0]
        ruined.append(resize_crop(tiny, h, w)[0])
    clean = scores(nima, pictures)
    assert all(4.9 < score < 6.5 for score in clean)
    assert all(bad < good - 1 for good, bad in zip(clean, scores(nima, ruined), strict=True))


def test_scores_are_those_of_the_published_network(nima: Aesthetics, assets: Path) -> None:
    # The published network on the published preprocessing of the full pictures.
    published = {
        "exif_portrait_1.jpg": 6.30,
        "coco_19924.jpg": 5.75,
        "coco_10014.jpg": 4.61,
        "skimage_hubble_deep_field.jpg": 3.87,
        "coco_13004.jpg": 3.62,
    }
    files = [assets / "images" / name for name in published]
    found = scores(nima, [decode(path.read_bytes(), 512).rgb for path in files])
    assert found == pytest.approx(list(published.values()), abs=0.3)
    assert np.argsort(found)[::-1].tolist() == list(range(5))
    small = [0, 0, 1, 0, 1]  # not reduced to the working size: the very same pixels go in
    for score, expected, same in zip(found, published.values(), small, strict=True):
        if same:
            assert score == pytest.approx(expected, abs=0.01)


def test_a_row_does_not_depend_on_its_batch(nima: Aesthetics, pictures: list[Pixels]) -> None:
    together = scores(nima, pictures)
    assert scores(nima, pictures[::-1]) == together[::-1]
    for rgb, score in zip(pictures, together, strict=True):
        assert scores(nima, [rgb]) == [score]


def test_failed_rows_stay_empty(nima: Aesthetics, pictures: list[Pixels]) -> None:
    failed = {"stage": "probe", "type": "empty", "message": ""}
    batch = table([pictures[0], None, pictures[1]])
    batch = batch.set_column(1, ERROR, pa.array([None, None, failed], ERROR.type))
    rated = nima(batch)
    assert rated["aesthetic"].to_pylist() == [*scores(nima, pictures[:1]), None, None]
    assert rated.schema.field("aesthetic").equals(Aesthetics.writes[0], check_metadata=True)
    assert rated.column_names == ["image", "error", "aesthetic"]


def test_nothing_to_rate_loads_nothing() -> None:
    operator = Aesthetics()
    assert operator(table([]))["aesthetic"].type == pa.float32()
    assert operator(table([None, None]))["aesthetic"].to_pylist() == [None, None]
    assert "_nima" not in vars(operator)


def test_pickles_without_its_weights(nima: Aesthetics, pictures: list[Pixels]) -> None:
    before = scores(nima, pictures[:1])
    data = pickle.dumps(nima)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == nima
    assert scores(copy, pictures[:1]) == before


def test_identity_names_the_weights() -> None:
    assert len(Aesthetics().identity) == 64
    assert Aesthetics().identity == Aesthetics(batch_rows=3).identity


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="backend is 'laion': choose nima or open_clip"):
        Aesthetics(backend="laion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs `model` and `head`"):
        Aesthetics(backend="open_clip")
    with pytest.raises(ValueError, match="batch_rows is 0"):
        Aesthetics(batch_rows=0)
    with pytest.raises(ValueError, match=r"head /no/head\.pth does not exist"):
        load_head("/no/head.pth")


@pytest.mark.parametrize(
    ("head", "vectors", "layers"),
    [
        ("laion_sa_0_4_vit_b_32_linear.pth", "vit_b_32.npy", 1),
        ("laion_sa_0_4_vit_l_14_linear.pth", "vit_l_14.npy", 1),
        ("laion_improved_mlp_l14.pth", "vit_l_14.npy", 5),
    ],
)
def test_laion_heads_order_laions_ratings(
    assets: Path, head: str, vectors: str, layers: int
) -> None:
    """LAION publishes a mean image feature for each rating from 0 to 9: scores must ascend."""
    network = load_head(str(assets / "weights" / head))
    assert len(network) == layers
    folder = assets / "weights/laion_clip_rating_embeddings"
    features = torch.from_numpy(np.load(folder / vectors)).float()
    ratings = network(torch.nn.functional.normalize(features, dim=-1))
    assert ratings.shape == (10, 1)
    assert (ratings.diff(dim=0) > 0).all()


def test_a_file_of_another_kind_is_no_head(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no LAION aesthetic head: it holds conv\.weight"):
        load_head(str(tmp_path / "other.pth"))
