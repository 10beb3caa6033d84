import pytest
import torch
from torch import Tensor, nn

from tokenize_offline.adversarial import (
    AdversarialSettings,
    Discriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from tokenize_offline.photographs import Photograph, to_unit


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (176, 32), (24, 24)])
def test_one_number_for_every_patch(layers: int, height: int, width: int) -> None:
    discriminator = Discriminator(AdversarialSettings(channels=4, layers=layers))
    judged = discriminator(torch.zeros(2, 3, height, width))
    assert judged.shape == (2, 1, height // 2**layers - 2, width // 2**layers - 2)


def test_a_patch_is_seventy_pixels_wide() -> None:
    """The normalisation looks at the whole picture, so it is left out of this."""
    discriminator = Discriminator(AdversarialSettings(channels=4))
    layers = [m for m in discriminator.layers if not isinstance(m, nn.GroupNorm)]
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    nn.Sequential(*layers)(pixels)[0, 0, 7, 7].backward()
    assert pixels.grad is not None
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_a_picture_is_judged_the_same_in_any_company() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(AdversarialSettings(channels=8))
    pixels = torch.randn(3, 3, 64, 64)
    alone = torch.cat([discriminator(picture[None]) for picture in pixels])
    torch.testing.assert_close(discriminator(pixels), alone)
    last = discriminator(pixels.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, alone)


def test_hinge_losses_by_hand() -> None:
    real, drawn = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0, -0.5])
    # (0 + 0.5 + 2) / 3 and (0 + 1 + 2 + 0.5) / 4
    assert float(discriminator_loss(real, drawn)) == pytest.approx((2.5 / 3 + 3.5 / 4) / 2)
    assert float(discriminator_loss(torch.zeros(2), torch.zeros(2))) == 1
    assert float(discriminator_loss(torch.ones(2), -torch.ones(2))) == 0
    assert float(generator_loss(drawn)) == pytest.approx(2.5 / 4)
    assert generator_loss(drawn.bfloat16()).dtype == torch.float32


def test_it_learns_to_tell_photographs_from_blurred_ones(photographs: list[Photograph]) -> None:
    torch.manual_seed(0)
    pixels = torch.cat([to_unit([photo.rgb[100:228, 100:228]]) for photo in photographs])
    blurred = torch.nn.functional.avg_pool2d(pixels, 5, 1, padding=2, count_include_pad=False)
    discriminator = Discriminator(AdversarialSettings(channels=16, layers=2))
    optimiser = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(70):
        optimiser.zero_grad()
        loss = discriminator_loss(discriminator(pixels), discriminator(blurred))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.2
    with torch.no_grad():
        real, drawn = discriminator(pixels), discriminator(blurred)
    assert (real.mean((1, 2, 3)) > drawn.mean((1, 2, 3))).all()


def test_the_adaptive_weight_makes_both_pull_alike() -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 3, padding=1))
    last = decoder[-1].weight
    assert isinstance(last, nn.Parameter)
    discriminator = Discriminator(AdversarialSettings(channels=4, layers=1))
    features, target = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 16, 16)

    def losses() -> tuple[Tensor, Tensor]:
        drawn = decoder(features)
        return (drawn - target).square().mean(), generator_loss(discriminator(drawn))

    lengths = []
    for index in range(2):
        decoder.zero_grad()
        losses()[index].backward()
        assert last.grad is not None
        lengths.append(float(last.grad.square().sum() ** 0.5))
    decoder.zero_grad()
    picture, adversarial = losses()
    weight = adaptive_weight(picture, adversarial, last)
    assert float(weight) == pytest.approx(lengths[0] / (lengths[1] + 1e-4), rel=1e-5)
    assert not weight.requires_grad
    assert last.grad is None
    (picture + weight * adversarial).backward()  # the graphs are still there
    halved = adaptive_weight(
        picture.detach() + 0 * last.sum() + last[0, 0, 0, 0], 0 * last.sum(), last
    )
    assert float(halved) == 10_000  # clamped: 1 / 1e-4 and not more
    assert float(adaptive_weight(10 * last.sum(), 0 * last.sum(), last)) == 10_000


def test_processes_agree_on_the_adaptive_weight() -> None:
    last = nn.Parameter(torch.ones(2))
    others = iter([torch.tensor([-2.0, 0.0]), torch.tensor([0.0, 1.0])])
    weight = adaptive_weight(
        2 * last[0] + 3 * last[1], last[1] * 1, last, lambda own: (own + next(others)) / 2
    )
    assert float(weight) == pytest.approx(1.5, rel=1e-3)  # (0, 1.5) against (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0: use 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"start_step": -1}, "start_step is -1"),
        ({"channels": 0}, "channels is 0: use 1 or more"),
        ({"layers": 0}, "layers is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0: use a number above 0"),
    ],
)
def test_mistakes_are_told_in_a_line(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialSettings(**changes)  # type: ignore[arg-type]
