"""Which weights each stage moves, and that its losses are what they say."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from infra.config import build
from tokenize_offline.draws import Batch, StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.model import Tokenizer, TokenizerSettings
from tokenize_offline.perceptual import load_perceptual
from tokenize_offline.photographs import Pictures, open_pictures
from tokenize_offline.preparation import prepare
from tokenize_offline.ranks import Ranks
from tokenize_offline.stages import STAGES, Stages
from tokenize_offline.teacher import load_teacher

Tree = dict[str, Any]
BRANCHES = ("semantic_encoder", "pixel_encoder", "pixel_decoder", "semantic_decoder")


@pytest.fixture(scope="module")
def pictures(tiny_training: Tree) -> Pictures:
    return open_pictures([Path(path) for path in tiny_training["images"]], short_side=256)


@pytest.fixture
def stages(tiny_training: Tree, pictures: Pictures) -> Stages:
    torch.manual_seed(0)
    learning = build(Learning, tiny_training["learning"])
    tokenizer = Tokenizer(build(TokenizerSettings, tiny_training["tokenizer"]))
    teacher = load_teacher(tiny_training["teacher"])
    return Stages(tokenizer, learning, teacher, Ranks(0, 1, torch.device("cpu")))


def batch(stages: Stages, pictures: Pictures, stage: str, step: int = 0) -> Batch:
    return StepDraws(stages.learning, stage, step).batch(pictures, 0)


def moved(stages: Stages, losses: dict[str, Tensor], *names: str) -> set[str]:
    """The top-level parts that the sum of these losses has a gradient for."""
    stages.tokenizer.zero_grad()
    torch.stack([losses[name] for name in names]).sum().backward(retain_graph=True)
    return {
        name.partition(".")[0]
        for name, parameter in stages.tokenizer.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


@pytest.mark.parametrize("stage", STAGES)
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts(
    stages: Stages, pictures: Pictures, stage: str
) -> None:
    """So processes and passes together take the step of one large batch."""
    for before in STAGES[: STAGES.index(stage) + 1]:
        prepare(stages, before, pictures, lambda line: None)
    stages.trained(stage)
    gradients = []
    for size, parts in ((4, 1), (2, 2)):
        stages.learning = dataclasses.replace(stages.learning, batch_size=size)
        stages.tokenizer.zero_grad()
        for part in range(parts):
            draws = StepDraws(stages.learning, stage, 5)
            losses = stages.losses(stage, draws.batch(pictures, part, dropout=True))
            losses.pop("energy", None)  # of a pass's own features
            (torch.stack(list(losses.values())).sum() / parts).backward()
        parameters = stages.tokenizer.named_parameters()
        gradients.append({name: p.grad for name, p in parameters if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_branches_learn_apart(stages: Stages, pictures: Pictures) -> None:
    prepare(stages, "branches", pictures, lambda line: None)
    stages.trained("branches")
    losses = stages.losses("branches", batch(stages, pictures, "branches"))
    assert moved(stages, losses, "picture") == {"pixel_encoder", "pixel_decoder"}
    assert moved(stages, losses, "semantic") == {"semantic_encoder", "semantic_decoder"}
    assert moved(stages, losses, "energy") == {"semantic_encoder", "pixel_encoder"}


def test_the_energys_gradient_is_that_of_its_value(stages: Stages) -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    energy = stages._from_one(features)
    plain = (features.square().mean() - 1).square()
    assert energy.item() == pytest.approx(plain.item())
    (ours,) = torch.autograd.grad(energy, features)
    (theirs,) = torch.autograd.grad(plain, features)
    torch.testing.assert_close(ours, theirs)


def test_the_teacher_is_standardised_over_all_its_pictures(
    stages: Stages, pictures: Pictures
) -> None:
    prepare(stages, "branches", pictures, lambda line: None)
    draws = [StepDraws(stages.learning, "branches-256", step) for step in range(16)]
    taught = [stages.teacher(draw.batch(pictures, 0, level=256).pixels) for draw in draws]
    rows = torch.cat([t.permute(0, 2, 3, 1).flatten(0, 2) for t in taught])
    torch.testing.assert_close(stages.tokenizer.teacher_mean, rows.mean(0))
    deviation = rows.std(0).clamp_min(1e-3)
    torch.testing.assert_close(stages.tokenizer.teacher_deviation, deviation)


def test_the_joint_stage_moves_everything_and_counts_codes(
    stages: Stages, pictures: Pictures
) -> None:
    prepare(stages, "joint", pictures, lambda line: None)
    stages.trained("joint")
    drawn = batch(stages, pictures, "joint")
    losses = stages.losses("joint", drawn)
    assert moved(stages, losses, *losses) == {*BRANCHES, "quantizer"}
    cells = [height * width for height, width in drawn.grids]
    assert stages.counts[: len(cells)].sum(1).tolist() == [2 * n for n in cells]
    assert torch.equal(stages.used, stages.counts.sum(0) > 0)
    messages: list[str] = []
    dead = int((~stages.used).sum())
    stages.restart_dead_codes(drawn, messages.append)
    assert messages == [f"  restarted {dead} of 64 codes"]
    assert not stages.used.any()


def test_the_decoders_learn_alone_on_the_codes_of_extraction(
    stages: Stages, pictures: Pictures
) -> None:
    prepare(stages, "joint", pictures, lambda line: None)
    blocks = stages.tokenizer.settings.decoder_blocks
    pixels = batch(stages, pictures, "joint").pixels
    before = stages.tokenizer.draw(stages.tokenizer.features(pixels))
    prepare(stages, "decoders", pictures, lambda line: None)
    assert stages.tokenizer.settings.decoder_blocks == tuple(2 * n for n in blocks)
    after = stages.tokenizer.draw(stages.tokenizer.features(pixels))
    torch.testing.assert_close(before, after)
    groups = stages.trained("decoders")
    free = {id(parameter) for group in groups for parameter in group["params"]}
    named = stages.tokenizer.named_parameters()
    assert {name.partition(".")[0] for name, p in named if id(p) in free} == {
        "pixel_decoder",
        "semantic_decoder",
    }
    losses = stages.losses("decoders", batch(stages, pictures, "decoders"))
    assert moved(stages, losses, "picture") == {"pixel_decoder"}
    assert moved(stages, losses, "semantic") == {"semantic_decoder"}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_perceptual_and_adversarial_losses_join_the_last_two_stages(
    tiny_training: Tree, stages: Stages, pictures: Pictures, stage: str
) -> None:
    adversarial = {"weight": 0.5, "start_step": 2, "channels": 8, "layers": 2}
    perceptual = {"network": "efficientnet_lite0", "weights": tiny_training["teacher"]}
    tree = tiny_training["learning"] | {"adversarial": adversarial, "joint_steps": 1}
    tree |= {"perceptual": perceptual | {"weight": 0.5}}
    learning = build(Learning, tree)
    distance = load_perceptual(learning.perceptual)
    stages = Stages(stages.tokenizer, learning, stages.teacher, stages.ranks, distance)
    prepare(stages, stage, pictures, lambda line: None)
    stages.trained(stage)
    start = 2 if stage == "joint" else 1  # decoder steps come after the one joint step
    early = stages.losses(stage, batch(stages, pictures, stage, start - 1))
    assert "adversarial" not in early
    losses = stages.losses(stage, batch(stages, pictures, stage, start))
    for name in ("adversarial", "perceptual"):
        assert "pixel_decoder" in moved(stages, losses, name)
    assert not losses["discriminator"].requires_grad
    critic = stages.critic
    assert critic is not None
    weights = [parameters_to_vector(critic.discriminator.parameters()).detach()]
    for _ in range(2):
        critic.step()
        weights.append(parameters_to_vector(critic.discriminator.parameters()).detach())
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])  # nothing was judged between


def test_a_state_gives_everything_back(stages: Stages, pictures: Pictures) -> None:
    prepare(stages, "joint", pictures, lambda line: None)
    stages.losses("joint", batch(stages, pictures, "joint"))
    prepare(stages, "decoders", pictures, lambda line: None)
    torch.manual_seed(1)
    fresh = Tokenizer(dataclasses.replace(stages.tokenizer.settings, decoder_blocks=(1, 1, 1)))
    again = Stages(fresh, stages.learning, stages.teacher, stages.ranks)
    again.load_state_dict("decoders", stages.state_dict())
    for name, value in stages.tokenizer.state_dict().items():
        assert torch.equal(again.tokenizer.state_dict()[name], value), name
    assert torch.equal(again.used, stages.used)
