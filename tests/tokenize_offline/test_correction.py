import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infra.config import ConfigError
from infra.schedules import nearest
from tokenize_offline.correction import Correction, encode, uniforms
from tokenize_offline.model import Tokenizer
from tokenize_offline.photographs import Photograph, to_unit, whole
from tokenize_offline.quantizer import Quantizer

GRIDS = nearest(1, 1).grids[:12]


def noisy(batch: int = 3) -> tuple[Quantizer, torch.Tensor, list[str]]:
    torch.manual_seed(0)
    return (
        Quantizer(256, 4, 6),
        torch.randn(batch, 10, 16, 16),
        [f"image-{i}" for i in range(batch)],
    )


def test_rate_zero_is_the_plain_encoding() -> None:
    q, features, ids = noisy()
    encoded = encode(q, features, GRIDS, ids, Correction(rate=0))
    plain = q.encode(features, GRIDS).numpy()
    assert np.array_equal(encoded.input_codes, plain)
    assert np.array_equal(encoded.target_codes, plain)
    assert not encoded.sampled.any()


def test_sixty_percent_are_drawn_and_fewer_change() -> None:
    q, features, ids = noisy(8)
    encoded = encode(q, features, GRIDS, ids, Correction(rate=0.6, top_k=4, temperature=1.0))
    assert encoded.sampled.mean() == pytest.approx(0.6, abs=0.02)
    flipped = encoded.input_codes != encoded.target_codes
    assert not (flipped & ~encoded.sampled).any()
    drawn, changed = encoded.rates(GRIDS)
    assert drawn.shape == changed.shape == (12,)
    assert drawn[-1] == encoded.sampled[:, -256:].mean()
    assert 0.2 < changed[-1] < drawn[-1]


def test_draws_follow_the_softmax_of_distances() -> None:
    q, _, _ = noisy()
    features = torch.randn(1, 10, 1, 1).expand(4_000, -1, -1, -1)
    grids = ((1, 1),)
    correction = Correction(rate=1.0, top_k=3, temperature=0.5)
    ids = [str(i) for i in range(4_000)]
    codes = encode(q, features, grids, ids, correction).input_codes[:, 0]
    index, distance = q.nearest(features[:1].reshape(1, 1, 10), 0, 3)
    expected = torch.softmax(-distance.flatten().double() / 0.5, dim=0)
    shares = [(codes == code).mean() for code in index.flatten().tolist()]
    assert shares == pytest.approx(expected.tolist(), abs=0.03)


def test_noise_belongs_to_the_image_not_to_its_batch() -> None:
    q, features, ids = noisy()
    together = encode(q, features, GRIDS, ids, Correction(seed=7))
    order = [2, 0, 1]
    shuffled = encode(q, features[order], GRIDS, [ids[i] for i in order], Correction(seed=7))
    assert np.array_equal(together.input_codes[order], shuffled.input_codes)
    assert np.array_equal(together.target_codes[order], shuffled.target_codes)


def test_noise_depends_on_id_seed_and_replica() -> None:
    streams = [
        uniforms("a", Correction(), 50),
        uniforms("b", Correction(), 50),
        uniforms("a", Correction(seed=1), 50),
        uniforms("a", Correction(replica=1), 50),
    ]
    assert len({stream.tobytes() for stream in streams}) == 4
    assert np.array_equal(streams[0], uniforms("a", Correction(), 50))
    assert streams[0].shape == (2, 50)
    assert streams[0].min() >= 0
    assert streams[0].max() < 1


def test_later_targets_answer_the_noise() -> None:
    q, features, ids = noisy()
    plain = q.encode(features, GRIDS).numpy()
    targets = encode(q, features, GRIDS, ids, Correction(temperature=1.0)).target_codes
    assert np.array_equal(targets[:, 0], plain[:, 0])  # nothing was wrong before the first scale
    assert (targets[:, -256:] != plain[:, -256:]).mean() > 0.2


@pytest.mark.parametrize("repair", [True, False])
def test_streams_are_those_of_the_paper_written_out(repair: bool) -> None:
    """Token by token; without repair (the residual goes on with the targets) they are plain."""
    q, features, ids = noisy(1)
    correction = Correction(rate=0.6, top_k=3, temperature=0.3)
    share, place = uniforms(ids[0], correction, sum(h * w for h, w in GRIDS))
    residual = features.clone()
    inputs: list[int] = []
    targets: list[int] = []
    for scale, grid in enumerate(GRIDS):
        rows = F.adaptive_avg_pool2d(residual, grid).flatten(2).mT
        index, distance = q.nearest(rows, scale, 3)
        taken = []
        for near, weights in zip(
            index[0], torch.softmax(-distance[0].double() / 0.3, 1), strict=True
        ):
            token, drawn = len(inputs), 0
            if share[token] < 0.6:
                drawn = int((weights.cumsum(0) <= place[token]).sum())
            inputs.append(int(near[drawn]))
            targets.append(int(near[0]))
            taken.append(inputs[-1] if repair else targets[-1])
        residual = residual - q.field(torch.tensor([taken]), scale, grid, GRIDS[-1]).detach()
    encoded = encode(q, features, GRIDS, ids, correction)
    if repair:
        assert encoded.input_codes[0].tolist() == inputs
        assert encoded.target_codes[0].tolist() == targets
    else:
        assert targets == q.encode(features, GRIDS)[0].tolist()
        assert inputs != targets


def test_input_codes_reconstruct_no_worse_than_target_codes(
    tokenizer: Tokenizer, photographs: list[Photograph]
) -> None:
    errors = {"input": 0.0, "target": 0.0}
    flips = 0.0
    for photo in photographs:
        schedule, rgb = whole(photo, 256)
        grids, pixels = schedule.grids[:12], to_unit([rgb])
        with torch.inference_mode():
            features = tokenizer.features(pixels)
            encoded = encode(tokenizer.quantizer, features, grids, [photo.name], Correction())
            for name, codes in (("input", encoded.input_codes), ("target", encoded.target_codes)):
                decoded = tokenizer.quantizer.decode(torch.from_numpy(codes).long(), grids)
                errors[name] += float(F.mse_loss(tokenizer.draw(decoded), pixels))
        flips += float((encoded.input_codes != encoded.target_codes).mean())
    assert flips / len(photographs) > 0.2
    assert errors["input"] <= errors["target"]


@pytest.mark.parametrize("wrong", [{"rate": 1.5}, {"top_k": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Correction(**wrong)  # type: ignore[arg-type]
