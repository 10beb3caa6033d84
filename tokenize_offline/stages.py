"""What each of the three training stages learns, after the paper's section 3.1.

1. *branches*: encoder and decoder without a quantiser: noise on the features stands in for it and
   their energy is held at 1, so that they spend their room on what matters. The semantic branch
   learns its teacher's features and passes no gradient to or from the picture; a pretrained tower
   is left as it is.
2. *joint*: the codebooks are fitted to the features by Lloyd's iteration; then everything is
   trained together, with scale dropout in some steps and restart of dead codes.
3. *decoders* alone, the pixel decoder doubled, on the very codes that extraction will produce.

The picture's error counts by its logarithm, as in PSNR: a tenth off the error is worth the same
in a smooth photograph and in a busy one. `tokenize_offline.preparation` does what comes before
each stage, `tokenize_offline.loop` takes the steps.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from infra.schedules import MAX_SCALES
from tokenize_offline.codebook import Latents, restart_dead
from tokenize_offline.critic import Critic
from tokenize_offline.draws import Batch
from tokenize_offline.learning import Learning
from tokenize_offline.model import Tokenizer, doubled
from tokenize_offline.perceptual import PerceptualDistance
from tokenize_offline.quantizer import exact_float32
from tokenize_offline.ranks import Ranks
from tokenize_offline.teacher import Teacher
from tokenize_offline.usage import tally
from tokenize_offline.vision_transformer import Layer

Log = Callable[[str], None]
Network = TypeVar("Network", bound=nn.Module)
STAGES = ("branches", "joint", "decoders")


class Stages:
    """The networks in training and the losses of each stage; the same weights on all ranks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        learning: Learning,
        teacher: Teacher,
        ranks: Ranks,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        self.learning, self.ranks = learning, ranks
        self._take(tokenizer)
        self.teacher = self._placed(teacher)
        num_codes = tokenizer.settings.num_codes
        self.used = torch.zeros(num_codes, dtype=torch.bool, device=ranks.device)
        self.counts = torch.zeros(MAX_SCALES, num_codes, dtype=torch.long, device=ranks.device)
        self.perceptual = perceptual
        self.critic = Critic(learning, ranks) if learning.adversarial.weight else None

    def trained(self, stage: str) -> list[dict[str, Any]]:
        """Set what the stage trains free and all else fast; the optimiser's groups of it.

        A group's ``scale`` is of the learning rate.
        """
        tokenizer = self.tokenizer
        tower = list(tokenizer.pretrained())
        tokenizer.requires_grad_(stage != "decoders")
        if stage == "decoders":
            tokenizer.pixel_decoder.requires_grad_(True)
            tokenizer.semantic_decoder.requires_grad_(True)
        elif stage == "branches":
            for parameter in tower:
                parameter.requires_grad_(False)
        known = {id(parameter) for parameter in tower}
        rest = [p for p in tokenizer.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": rest, "scale": 1.0}]
        if tower and stage == "joint":
            groups.append({"params": tower, "scale": self.learning.semantic_learning_rate_scale})
        return groups

    def losses(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """The losses of one pass, weighted; what counts is the gradient of their sum.

        The discriminator's, which is among them, has none. The codes chosen go into ``counts``.
        """
        if stage == "branches":
            return self._branches(batch)
        return self._joint(batch) if stage == "joint" else self._decoders(batch)

    def restart_dead_codes(self, batch: Batch, log: Log) -> None:
        """Codes that no rank chose since the last time become residuals of this batch."""
        used = self.ranks.total(self.used.int()) > 0
        generator = batch.draws.torch_generator("restart")
        restarted = restart_dead(self.tokenizer.quantizer, used, self.latents(batch), generator)
        self.ranks.copy_from_first(self.tokenizer.quantizer)
        self.used.zero_()
        log(f"  restarted {restarted} of {len(used)} codes")

    def share_used(self) -> None:
        """Every rank knows of the codes that any has used: the first one's state is all ranks'."""
        self.used = self.ranks.total(self.used.int()) > 0

    @torch.no_grad()
    def latents(self, batch: Batch) -> Latents:
        """The features of all ranks' pictures, so that all ranks make the same of them."""
        return self.ranks.gather(self.tokenizer.features(batch.pixels).float()), batch.grids

    def double_decoder(self) -> None:
        """Give the pixel decoder twice its blocks, for the last stage."""
        torch.manual_seed(self.learning.seed)  # for the first layers of the new blocks
        self._take(doubled(self.tokenizer))

    def state_dict(self) -> dict[str, Any]:
        """All that training has changed."""
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "used": self.used,
            "critic": self.critic.state_dict() if self.critic else None,
        }

    def load_state_dict(self, stage: str, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave in this stage."""
        if stage == "decoders":
            self.double_decoder()
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.used.copy_(state["used"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])

    def _branches(self, batch: Batch) -> dict[str, Tensor]:
        settings, noise = self.tokenizer.settings, self.learning.feature_noise
        with self._autocast():
            features = self.tokenizer.features(batch.pixels).float()
            semantic, pixel = features.tensor_split([settings.semantic_dim], dim=1)
            energy = self._from_one(semantic) + self._from_one(pixel)
            noisy = features + noise * batch.noise(features.shape[1])
            semantic, pixel = noisy.tensor_split([settings.semantic_dim], dim=1)
            drawn = self.tokenizer.draw(torch.cat([semantic.detach(), pixel], dim=1))
            meant = self.tokenizer.meaning(noisy)
        return self._reconstruction(batch, drawn, meant) | {"energy": 0.1 * energy}

    def _joint(self, batch: Batch) -> dict[str, Tensor]:
        learning, tokenizer = self.learning, self.tokenizer
        with self._autocast():
            features = tokenizer.features(batch.pixels)
        quantized = tokenizer.quantizer(features, batch.grids, batch.keep)
        with self._autocast():
            drawn = tokenizer.draw(quantized.features)
            meant = tokenizer.meaning(quantized.features)
        losses = self._reconstruction(batch, drawn, meant)
        losses |= self._appearance(batch, drawn, losses["picture"])
        losses["codebook"] = learning.codebook_weight * quantized.codebook_loss
        losses["commit"] = learning.commit_weight * quantized.commit_loss
        self._count(quantized.codes, batch)
        return losses

    def _decoders(self, batch: Batch) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        with torch.no_grad(), exact_float32(self.ranks.device):
            # Without autocast: in bfloat16 the encoder would give other codes than extraction.
            codes = tokenizer.quantizer.encode(tokenizer.features(batch.pixels), batch.grids)
            features = tokenizer.quantizer.decode(codes, batch.grids)
        with self._autocast():
            drawn, meant = tokenizer.draw(features), tokenizer.meaning(features)
        losses = self._reconstruction(batch, drawn, meant)
        self._count(codes, batch)
        return losses | self._appearance(batch, drawn, losses["picture"])

    def _reconstruction(self, batch: Batch, drawn: Tensor, meant: Tensor) -> dict[str, Tensor]:
        error = (drawn.float() - batch.pixels).square().mean(dim=(1, 2, 3))
        with self._autocast():
            taught = self.teacher(batch.pixels)
        similarity = F.cosine_similarity(meant.float(), self.tokenizer.standard(taught), dim=1)
        return {
            "picture": (error + 1e-4).log().mean(),
            "semantic": self.learning.semantic_weight * (1 - similarity).mean(),
        }

    def _appearance(self, batch: Batch, drawn: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """The perceptual and the adversarial loss, where the recipe has them."""
        learning, losses = self.learning, dict[str, Tensor]()
        drawn = drawn.float()
        if self.perceptual is not None:
            with self._autocast():
                distance = self.perceptual(drawn, batch.pixels).mean()
            losses["perceptual"] = learning.perceptual.weight * distance
            picture = picture + losses["perceptual"]
        if self.critic is not None and self.critic.awake(batch.draws):
            losses |= self.critic.judge(batch.pixels, drawn, picture, self._last_layer())
        return losses

    def _from_one(self, branch: Tensor) -> Tensor:
        """(mean square - 1)^2 of all ranks' features: as if they were one batch."""
        mean = branch.square().mean()
        off = self.ranks.mean(mean.detach()) - 1
        return off.square() + 2 * off * (mean - mean.detach())  # the value, and the gradient

    def _count(self, codes: Tensor, batch: Batch) -> None:
        counts = torch.zeros_like(self.counts)
        tally(counts, codes, batch.grids)
        self.counts += counts
        self.used |= counts.any(dim=0)

    def _last_layer(self) -> Tensor:
        layers = [m for m in self.tokenizer.pixel_decoder.modules() if isinstance(m, nn.Conv2d)]
        return layers[-1].weight

    def _take(self, tokenizer: Tokenizer) -> None:
        if self.learning.gradient_checkpointing:
            apply_activation_checkpointing(
                tokenizer.semantic_encoder, check_fn=lambda module: isinstance(module, Layer)
            )
        self.tokenizer = self._placed(tokenizer)

    def _placed(self, network: Network) -> Network:
        """On the device, channels last, which the convolutions of CPUs and GPUs are fastest in."""
        return network.to(memory_format=torch.channels_last).to(self.ranks.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.ranks.device.type, torch.bfloat16, enabled=self.learning.bfloat16
        )
