"""Attention under the two interval vectors of a pack: query q sees keys [start[q], end[q]).

On the CPU, where FlexAttention has no backward pass, torch's own attention document by document, so
that time and memory go with the pairs that are attended; a FlexAttention block mask on CUDA. Either
mask is built once per pack and shared by all layers.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Mask = Any  # the `Rows` of each document, or a FlexAttention BlockMask

_ROWS = 256  # queries attended at a time: fewer meet fewer keys that none of them sees


class Rows(NamedTuple):
    """Queries [start, stop) of a document, which see keys among its first ``num_keys``."""

    start: int
    stop: int
    num_keys: int
    bias: Tensor | None  # [queries, num_keys] fp32: -inf where one does not see; None: no such pair
    causal: bool = False  # every query sees up to itself


def build_mask(key_start: Tensor, key_end: Tensor) -> Mask:
    """The mask of a pack from its intervals, both [T] integers on the device to run on."""
    length, device = len(key_start), key_start.device
    if device.type == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask  # slow to import

        visible = interval_rule(key_start, key_end)
        # None: one mask for all heads. Uncompiled, building it would take T x T memory.
        return create_block_mask(visible, None, None, length, length, device, _compile=True)
    changes = (key_start[1:] != key_start[:-1]).nonzero().flatten() + 1  # where a document starts
    bounds = [0, *changes.tolist(), length]
    return [_rows(key_end[start:stop] - start) for start, stop in pairwise(bounds)]


def _rows(key_end: Tensor) -> list[Rows]:
    """How the queries of one document are attended, from the ends of what each sees."""
    length = len(key_end)
    if torch.equal(key_end, torch.arange(1, length + 1)):
        return [Rows(0, length, length, None, causal=True)]
    found = []
    for start in range(0, length, _ROWS):
        ends = key_end[start : start + _ROWS]
        num_keys = int(ends.max())
        hidden = torch.arange(num_keys) >= ends[:, None]
        # fp32, as torch would turn a bool mask into it, once more for every layer.
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        found.append(Rows(start, start + len(ends), num_keys, bias if hidden.any() else None))
    return found


def interval_rule(key_start: Tensor, key_end: Tensor) -> Callable[..., Tensor]:
    """The same intervals as FlexAttention's rule over (batch, head, query, key) indices."""

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= key_start[query]) & (key < key_end[query])

    return visible


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """[heads, T, head_dim] from queries of that shape and keys, values [kv heads, T, head_dim]."""
    if not isinstance(mask, list):
        batch = (query[None], key[None], value[None])
        return _flex_attention()(*batch, block_mask=mask, enable_gqa=True)[0]
    # One split, and not a slice per document: the gradient of a slice is as long as the pack.
    lengths = [rows[-1].stop for rows in mask]
    documents = zip(
        *(torch.split(x, lengths, dim=1) for x in (query, key, value)), mask, strict=True
    )
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[None, :, rows.start : rows.stop],
                k[None, :, : rows.num_keys],
                v[None, :, : rows.num_keys],
                attn_mask=rows.bias,
                is_causal=rows.causal,
                enable_gqa=True,
            )[0]
            for q, k, v, document in documents
            for rows in document
        ],
        dim=1,
    )


@lru_cache(maxsize=1)
def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # dynamic: packs differ in T, and a compilation takes longer than many steps.
    return torch.compile(flex_attention, dynamic=True)
