"""Relevance of patches for the output: attention rollout, and attention weighted by the gradients of one class.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928, and Chefer, Gur and Wolf,
"Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
https://arxiv.org/abs/2103.15679. Both follow the attention of all blocks back from what the head reads to the patches.

Shapes: T tokens, N patches, D embed_dim, h heads, K classes; all for one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.attention_pool import AttentionPool
from model.config import ViTConfig
from model.vit import Attention, VisionTransformer


class RecordedModel:
    """A Vision Transformer that keeps its attention weights. The model given is changed: use it for nothing else."""

    def __init__(self, model: VisionTransformer) -> None:
        self.config = model.config
        self._model = model.eval().requires_grad_(False)
        self._attentions = [_record(block) for block in model.blocks]
        self._pool: RecordedPool | None = None
        if model.config.pooling == "map" and model.attn_pool is not None:  # others may have one that only gives features
            self._pool = RecordedPool(model.attn_pool)
            model.attn_pool = self._pool  # type: ignore[assignment]  # it pools as the one that it records

    def run(self, image: Tensor, *, gradients: bool = True) -> "Recording":
        """Run one normalised image: (1, C, H, W) -> its output, with the attention of all blocks.

        Without `gradients` only `rollout` can follow; intermediate results are then not kept.
        """
        with torch.set_grad_enabled(gradients):
            tokens = self._model.norm(self._model.blocks(self._model.embed(image).requires_grad_(gradients)))
            output = self._model.forward_head(tokens)[0]
        pool = None if self._pool is None else self._pool.take()
        return Recording(self.config, output, tokens, [attention.take() for attention in self._attentions], pool)


@dataclass(frozen=True, slots=True)
class Recording:
    """One run of the model, with what is needed to follow it back."""

    config: ViTConfig
    output: Tensor
    """(K,) logits, or the features of an encoder."""
    tokens: Tensor
    """(1, T, D) encoder's output."""
    attention: Sequence[Tensor]
    """(1, h, T, T) weights of each block, the first block first."""
    pool_attention: Tensor | None
    """(1, h, 1, N) weights of attention pooling, if that is how the model pools."""

    def rollout(self) -> Tensor:
        """Follow the mean attention of the heads back to the patches: (N,), not negative.

        Half of what a token passes on is itself, through the residual connection (Abnar and Zuidema, section 3).
        """
        with torch.no_grad():
            identity = torch.eye(self.tokens.shape[1])
            flow = identity
            for weights in self.attention:
                flow = (0.5 * weights[0].mean(dim=0) + 0.5 * identity) @ flow
            return self._patches(self._shares() @ flow)

    def relevance(self, class_index: int) -> Tensor:
        """Follow attention that raises the logit of a class back to the patches: (N,), not negative.

        Each head counts by the positive part of weight times gradient (Chefer, Gur and Wolf, equations 5 and 6). Where the head
        reads a class token alone, that token is all that counts, as in the paper; where it reads patches, each token that it
        reads counts by the positive part of token times gradient. It frees what the run kept for gradients.

        Raises:
            RuntimeError: the model was run without gradients, or this is the second call.
        """
        gradients = torch.autograd.grad(self.output[class_index], [self.tokens, *self.attention])
        with torch.no_grad():
            flow = torch.eye(self.tokens.shape[1])
            for weights, gradient in zip(self.attention, gradients[1:], strict=True):
                flow = flow + (weights * gradient)[0].clamp(min=0).mean(dim=0) @ flow
            reads_patches = self.pool_attention is not None or "avg" in self.config.pooling
            read = (self.tokens * gradients[0])[0].sum(dim=1).clamp(min=0) if reads_patches else self._shares()
            return self._patches(read @ flow)

    def _patches(self, tokens: Tensor) -> Tensor:
        return tokens[self.config.num_prefix_tokens :]

    def _shares(self) -> Tensor:
        """Return the share of each token in what the head reads: (T,), sum 1."""
        config = self.config
        read = torch.zeros(self.tokens.shape[1])
        if self.pool_attention is not None:
            read[config.num_prefix_tokens :] = self.pool_attention[0].mean(dim=0)[0]
            return read
        if "token" in config.pooling:
            read[0] = 1
        if config.head_dist or config.pooling == "token+dist":
            read[1] = 1
        if "avg" in config.pooling:
            read[config.num_prefix_tokens :] = 1 / config.num_patches
        return read / read.sum()


class _Recorded(nn.Module):
    """A module with attention, whose weights are kept until they are taken."""

    _weights: Tensor | None = None

    def take(self) -> Tensor:
        """Return the weights of the last run, and forget them: they are large. Each row has the sum 1."""
        assert self._weights is not None
        weights, self._weights = self._weights, None
        return weights

    def _record(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        self._weights = weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        return weights


class RecordedAttention(_Recorded):
    """The attention of a block, with weights (B, h, T, T)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, bias = self.attention.project(x)
        return self.attention.merge(self._record(q, k, bias) @ v)


class RecordedPool(_Recorded):
    """Attention pooling, with weights (B, h, 1, T)."""

    def __init__(self, pool: AttentionPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.pool.project(tokens)
        return self.pool.merge(self._record(q, k, None) @ v)


def _record(block: nn.Module) -> RecordedAttention:
    """Replace the attention of a block."""
    assert isinstance(block.attn, Attention)
    recorded = RecordedAttention(block.attn)
    block.attn = recorded
    return recorded
