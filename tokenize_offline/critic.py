"""The discriminator's side of the training: its loss, its optimiser, and the weight of its word.

From ``adversarial.start_step`` on, counted over the joint and the decoder stage, a PatchGAN learns
to tell drawn pictures from real ones and the decoder to please it. The two are kept in balance by
the ratio of their gradients at the decoder's last layer (Esser et al. 2021, section 3.1).
"""

from typing import Any

import torch
from torch import Tensor

from tokenize_offline.adversarial import (
    Discriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from tokenize_offline.draws import StepDraws
from tokenize_offline.learning import Learning
from tokenize_offline.ranks import Ranks


class Critic:
    """A discriminator with its optimiser, the same on all ranks."""

    def __init__(self, learning: Learning, ranks: Ranks) -> None:
        settings = learning.adversarial
        self.settings, self.ranks = settings, ranks
        self.passes, self.bfloat16 = learning.gradient_accumulation, learning.bfloat16
        self.before = {"joint": 0, "decoders": learning.joint_steps}  # steps of earlier stages
        self.discriminator = Discriminator(settings).to(ranks.device)
        ranks.copy_from_first(self.discriminator)
        self.optimiser = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=settings.learning_rate,
            betas=(0.5, 0.9),  # as is usual for discriminators: little momentum
            weight_decay=0.0,
        )

    def awake(self, draws: StepDraws) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.before[draws.stage] + draws.step >= self.settings.start_step

    def judge(
        self, pixels: Tensor, drawn: Tensor, reconstruction: Tensor, last_layer: Tensor
    ) -> dict[str, Tensor]:
        """The decoder's loss, and the discriminator's own, already backpropagated into itself.

        ``last_layer``: the decoder's last weights, where the two losses' gradients are compared.
        The discriminator's loss carries no gradient, so that it may stand among the others.
        """
        self.discriminator.requires_grad_(False)
        fooled = generator_loss(self._opinion(drawn))
        balance = adaptive_weight(reconstruction, fooled, last_layer, self.ranks.mean)
        self.discriminator.requires_grad_(True)
        told = discriminator_loss(self._opinion(pixels), self._opinion(drawn.detach()))
        torch.autograd.backward(told / self.passes)
        return {
            "adversarial": self.settings.weight * balance * fooled,
            "discriminator": told.detach(),
        }

    def _opinion(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.discriminator(pictures)

    def step(self) -> None:
        """Learn from the calls of `judge` since the last time; without any, nothing changes."""
        self.ranks.average_gradients(self.discriminator.parameters())
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])
