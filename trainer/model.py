"""The decoder: Qwen2.5's blocks over text and multi-scale visual codes, one shared head.

Paper section 2.2. Grouped-query attention with bias on q, k, v; SwiGLU; RMSNorm; multi-scale 3D
RoPE. Parameters are named as in Qwen2.5, so its text weights load by name. A pack is one sequence
without padding: tensors are [T, hidden], without a batch axis.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infra.layout import Vocabulary
from infra.schedules import MAX_SCALES
from trainer import attention
from trainer.batch import PackTensors
from trainer.config import ModelConfig
from trainer.loss import TokenLoss, fused_linear_cross_entropy
from trainer.rope import rotary, rotate, sinusoid

Rotation = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values [heads, T, head_dim] what they attend to: masked, or cached."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        self.q_proj = nn.Linear(config.hidden_size, queries)
        self.k_proj = nn.Linear(config.hidden_size, keys)
        self.v_proj = nn.Linear(config.hidden_size, keys)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def heads(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, [heads, T, head_dim], of [T, hidden]."""

        def split(projected: Tensor) -> Tensor:  # [T, n d] -> [n, T, d]
            return projected.view(len(x), -1, self.head_dim).transpose(0, 1)

        query, key = (rotate(split(of(x)), rotation) for of in (self.q_proj, self.k_proj))
        return query, key, split(self.v_proj(x))

    def join(self, attended: Tensor) -> Tensor:
        """[T, hidden] of [heads, T, head_dim]."""
        return self.o_proj(attended.transpose(0, 1).flatten(1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        return self.after(x, attend(*self.before(x, rotation)))

    def before(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.heads(self.input_layernorm(x), rotation)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.self_attn.join(attended)
        return x + self.mlp(self.post_attention_layernorm(x))

    def compile_parts(self) -> None:
        """All layers share what is compiled; packs differ in T, so it is for any."""
        self.before = torch.compile(self.before, dynamic=True)  # type: ignore[method-assign]
        self.after = torch.compile(self.after, dynamic=True)  # type: ignore[method-assign]


class VisionInputs(nn.Module):
    """Visual embeddings, the connector to the decoder's width, and the scale embeddings."""

    def __init__(self, config: ModelConfig, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(num_codes, code_dim))
        self.connector = nn.Sequential(
            nn.Linear(code_dim, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.scale_embedding = nn.Embedding(MAX_SCALES, config.hidden_size)

    def forward(self, pack: PackTensors) -> Tensor:
        """[T_v, hidden]: upsampled in code space in fp32, then the connector (it is not linear)."""
        codes = F.embedding_bag(
            pack.tap_codes,
            self.codebook.float(),
            mode="sum",
            per_sample_weights=pack.tap_weights,
        )
        vision = self.connector(codes.to(self.codebook.dtype))
        return vision + self.scale_embedding(pack.scale - 1)


class Head(nn.Linear):
    """One head over text and codes. Calling it gives the loss: ZeRO-3 gathers weights per call."""

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> TokenLoss:  # type: ignore[override]
        return fused_linear_cross_entropy(hidden, self.weight, targets, weights)

    def logits(self, hidden: Tensor) -> Tensor:
        """[T, vocabulary] of hidden states [T, hidden]."""
        return F.linear(hidden, self.weight)


class Decoder(nn.Module):
    """The whole model. Calling it on a pack gives the pack's loss."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, code_dim: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.recompute = False  # layers in the backward pass, instead of storing what they compute
        # Codes are embedded by the codebook, so the text table ends with <boi> and <eoi>.
        self.embed_tokens = nn.Embedding(vocabulary.first_code, config.hidden_size)
        self.vision = VisionInputs(config, vocabulary.num_codes, code_dim)
        self.length_gain = nn.Parameter(torch.tensor([config.init_std]))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(config.hidden_size, vocabulary.size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():  # residual branches add up over the layers
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=std / (2 * self.config.num_layers) ** 0.5)
        nn.init.normal_(self.vision.codebook)
        self.load_codebook(F.normalize(self.vision.codebook.detach(), dim=-1))

    def compile_layers(self) -> None:
        """Fuse what is in the layers, but for attention: on a GPU it is compiled in any case."""
        for layer in self.layers:
            assert isinstance(layer, Block)
            layer.compile_parts()

    @torch.no_grad()
    def load_codebook(self, codebook: Tensor) -> None:
        """Start the visual embeddings from the tokenizer's codebook [num_codes, code_dim]."""
        self.vision.codebook.copy_(codebook)

    def embed(self, pack: PackTensors) -> Tensor:
        """[T, hidden] inputs of the first block."""
        text = self.embed_tokens(pack.text_ids)
        # Runs on packs without images too (on no rows): with ZeRO all ranks must produce the same
        # gradients, whatever their packs hold.
        vision = self.vision(pack)
        x = text.new_zeros(pack.num_tokens, text.shape[1])
        x = x.index_copy(0, pack.text_index, text)
        x = x.index_copy(0, pack.vision_index, vision.to(x.dtype))
        length = self.length_gain * sinusoid(pack.length, x.shape[1])
        return x.index_add(0, pack.length_index, length.to(x.dtype))

    def hidden(self, pack: PackTensors) -> Tensor:
        """[T, hidden] after the last norm."""
        mask = attention.build_mask(pack.key_start, pack.key_end)
        masked = partial(attention.attend, mask=mask)
        return self.run(self.embed(pack), pack.positions, [masked] * len(self.layers))

    def run(self, x: Tensor, positions: Tensor, attends: Sequence[Attend]) -> Tensor:
        """[T, hidden] from inputs of that shape at ``positions`` [T, 3]; one function per layer."""
        config = self.config
        rotation = rotary(positions, config.mrope_sections, config.rope_theta, config.head_dim)
        for layer, attend in zip(self.layers, attends, strict=True):
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a layer is drawn at random, so there is no state to preserve.
                x = checkpoint(
                    layer, x, rotation, attend, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, rotation, attend)
        return self.norm(x)

    def logits(self, pack: PackTensors) -> Tensor:
        """[T, vocabulary] of every position: for tests and sampling, training never stores them."""
        return self.lm_head.logits(self.hidden(pack))

    def forward(self, pack: PackTensors) -> TokenLoss:
        """The pack's weighted loss sum, and cross-entropy and correctness per target."""
        hidden = self.hidden(pack)[pack.loss_index]
        return self.lm_head(hidden, pack.targets, pack.weights)
