"""Attention under the two interval vectors of a pack: query q sees keys [start[q], end[q]).

A dense mask and torch's own attention on the CPU, where FlexAttention has no backward pass; a
FlexAttention block mask, built once per pack and shared by all layers, on CUDA.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Mask = Any  # a bool tensor [T, T], or a FlexAttention BlockMask


def build_mask(key_start: Tensor, key_end: Tensor) -> Mask:
    """The mask of a pack from its intervals, both [T] integers on the device to run on."""
    length, device = len(key_start), key_start.device
    if device.type == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask  # slow to import

        visible = interval_rule(key_start, key_end)
        # None: one mask for all heads. Uncompiled, building it would take T x T memory.
        return create_block_mask(visible, None, None, length, length, device, _compile=True)
    keys = torch.arange(length, device=device)
    return (keys >= key_start[:, None]) & (keys < key_end[:, None])


def interval_rule(key_start: Tensor, key_end: Tensor) -> Callable[..., Tensor]:
    """The same intervals as FlexAttention's rule over (batch, head, query, key) indices."""

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= key_start[query]) & (key < key_end[query])

    return visible


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """[heads, T, head_dim] from queries of that shape and keys, values [kv heads, T, head_dim]."""
    batch = (query[None], key[None], value[None])
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(*batch, attn_mask=mask, enable_gqa=True)[0]
    return _flex_attention()(*batch, block_mask=mask, enable_gqa=True)[0]


@lru_cache(maxsize=1)
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # dynamic: packs differ in T, and a compilation takes longer than many steps.
    return torch.compile(flex_attention, dynamic=True)
