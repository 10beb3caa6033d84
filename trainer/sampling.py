"""Next-scale generation: all codes of a scale at once, scale after scale, from a cache of keys.

The positions of a scale are those of the layout that training saw, so that what is sampled here is
what a whole forward pass over the finished image gives.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from infra.layout import Image, Segment, layout
from infra.schedules import SCHEDULES
from trainer.batch import pack_tensors
from trainer.model import Attend, Decoder


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn. ``temperature`` 0 takes the likeliest; ``top_k`` 0 is all codes.

    ``guidance`` g of classifier-free guidance moves the logits from those without the prompt to
    g times the difference: 1 is the prompt alone, which costs half as much.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: use 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: use 0 (all codes) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: use a share in (0, 1]")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}: use 0 or more")


@torch.inference_mode()
def sample_image(
    model: Decoder,
    prompt: Sequence[Segment],
    schedule: int,
    num_scales: int,
    sampling: Sampling,
) -> NDArray[np.int32]:
    """The codes [N] of an image of this schedule that continues ``prompt``, coarse to fine.

    One seed gives one image. Without a prompt the image stands at the start of a document, as in
    training those do whose caption was dropped.
    """
    grids = SCHEDULES[schedule].grids[:num_scales]
    ends = np.cumsum([height * width for height, width in grids])
    codes = np.zeros(ends[-1], np.int32)
    generator = torch.Generator().manual_seed(sampling.seed)
    prompts: list[Sequence[Segment]] = [prompt]
    if sampling.guidance != 1 and prompt:
        prompts.append(())
    steps = [_step_function(model, context, schedule, num_scales) for context in prompts]
    for scale, end in enumerate(ends, start=1):
        logits = [step(scale, codes).float().cpu() for step in steps]
        mixed = logits[0]
        if len(logits) == 2:
            mixed = logits[1] + sampling.guidance * (logits[0] - logits[1])
        height, width = grids[scale - 1]
        codes[end - height * width : end] = draw(mixed, sampling, generator).numpy()
    return codes


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """[n] codes from logits [n, num_codes]; equal logits and generator give equal codes."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # Less the largest and in fp64, so that any temperature above 0 leaves finite numbers.
    below = (logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature
    ranked, order = below.float().sort(dim=-1, descending=True, stable=True)
    chances = ranked.softmax(dim=-1)
    if sampling.top_k:
        chances[:, sampling.top_k :] = 0
    # The likeliest codes that reach top_p together: those before which less has been reached.
    before = chances.cumsum(dim=-1) - chances
    chances[before >= sampling.top_p * chances.sum(dim=-1, keepdim=True)] = 0
    return order.gather(1, torch.multinomial(chances, 1, generator=generator)).squeeze(1)


def _step_function(
    model: Decoder, prompt: Sequence[Segment], schedule: int, num_scales: int
) -> Callable[[int, NDArray[np.int32]], Tensor]:
    """A function of (scale, codes of all scales before it) that gives that scale's code logits.

    It must be called for the scales in turn: each call adds its positions to the cache.
    """
    device = model.lm_head.weight.device
    cache: list[tuple[Tensor, Tensor] | None] = [None] * len(model.layers)  # [kv heads, T, d]

    def step(scale: int, codes: NDArray[np.int32]) -> Tensor:
        image = Image(schedule, num_scales, codes, codes)
        sequence = layout([[*prompt, image]], model.vocabulary)
        boi = sequence.images[-1].start
        start, stop = 0, boi + 1  # which predicts the first scale, and is read with the prompt
        if scale > 1:
            block = np.flatnonzero(sequence.scale[boi:] == scale) + boi
            start, stop = int(block[0]), int(block[-1]) + 1
        pack = pack_tensors(sequence, model.config, 0.0).to(device)
        visible = torch.arange(stop, device=device) < pack.key_end[start:stop, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            before = cache[layer]
            if before is not None:
                key, value = torch.cat([before[0], key], 1), torch.cat([before[1], value], 1)
            cache[layer] = key, value
            batch = (query[None], key[None], value[None])
            return F.scaled_dot_product_attention(*batch, attn_mask=visible, enable_gqa=True)[0]

        attends: list[Attend] = [partial(attend, layer) for layer in range(len(model.layers))]
        here = slice(start, stop)
        hidden = model.run(model.embed(pack)[here], pack.positions[here], attends)
        predicting = hidden[-1:] if scale == 1 else hidden
        return predicting @ model.lm_head.weight[model.vocabulary.first_code :].T

    return step
