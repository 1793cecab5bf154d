"""Attention over the grid: where to look, and what is seen there.

One interface for every kind. What depends on the image alone (keys, values) is computed once per
image by `Attention.remember`; a step costs only the query.

Shapes: B images, C rows per image (captions in training, beams in decoding), L locations,
D feature size, A attention size, Q query size, N heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import AttentionConfig
from captioner.errors import ConfigError
from captioner.models.additive_attention import additive_score
from captioner.models.normalizers import normalize


class Memory(NamedTuple):
    """All that the decoder needs of a batch of images, computed once.

    Attributes:
        values: (B, L, D) what is read at each location.
        keys: (B, L, A) what queries are compared with.
        size: (H, W) of the grid.
        spread: (L, L) share of each cell's weight that goes to each cell, if maps are smoothed.
    """

    values: Tensor
    keys: Tensor
    size: tuple[int, int]
    spread: Tensor | None = None

    def select(self, images: Tensor) -> Memory:
        """The memory of some of the images, by index (B',)."""
        return self._replace(values=self.values[images], keys=self.keys[images])

    def first(self, images: int) -> Memory:
        """The memory of the first images, without a copy."""
        if images == len(self.values):
            return self
        return self._replace(values=self.values[:images], keys=self.keys[:images])


class AttentionOutput(NamedTuple):
    """What one look at the image gives.

    Attributes:
        context: (B, C, D) what was seen.
        weights: (B, C, L) in fp32, where; they sum to 1 over L.
        chosen: (B, C) the one location that hard attention drew in training, -1 where it read the
            mean instead; None otherwise.
    """

    context: Tensor
    weights: Tensor
    chosen: Tensor | None = None


class Attention(nn.Module):
    """Scores of one kind, a normaliser and the weighted sum of the values.

    ==============  ========================================================================
    `additive`    v·tanh(W_a a + W_h h), Bahdanau et al. 2015; f_att of Xu et al. 2015
    `dot`         a·(W_h h) (the hidden state must be projected to the feature size)
    `general`     (W_a a)·(W_h h), the bilinear form of Luong et al. 2015
    `scaled_dot`  `general` divided by √A, Vaswani et al. 2017
    `multi_head`  `scaled_dot` in N subspaces with their own values and output projection
    ==============  ========================================================================

    Args:
        config: Kind, sizes, normaliser.
        feature_size: D.
        query_size: Q.
    """

    def __init__(self, config: AttentionConfig, feature_size: int, query_size: int):
        super().__init__()
        self.config = config
        kind, size = config.kind, config.size
        # Only the additive score sees a bias of the keys; elsewhere it adds the same everywhere.
        self.key: nn.Module = nn.Identity()
        if kind != "dot":
            self.key = nn.Linear(feature_size, size, bias=kind == "additive")
        self.query = nn.Linear(query_size, feature_size if kind == "dot" else size)
        if kind == "additive":
            self.score = nn.Parameter(torch.empty(size).uniform_(-1, 1) / math.sqrt(size))
        if kind == "multi_head":
            if config.mode == "hard":
                raise ConfigError("attention.mode=hard looks at one place: take another kind")
            if size % config.heads or feature_size % config.heads:
                raise ConfigError(
                    f"attention.heads={config.heads} must divide attention.size={size} "
                    f"and the feature size {feature_size}"
                )
            self.value = nn.Linear(feature_size, feature_size)
            self.out = nn.Linear(feature_size, feature_size)

    def remember(self, features: Tensor, size: tuple[int, int]) -> Memory:
        """Compute keys and values once per image: (B, L, D) -> `Memory`."""
        values = self.value(features) if self.config.kind == "multi_head" else features
        keys = self.key(features)
        if self.config.kind == "additive":  # its score runs in fp32; autocast hands out bf16
            keys = keys.float()
        spread = neighbour_spread(*size, keys.device) if self.config.smooth else None
        return Memory(values, keys, size, spread)

    def forward(self, query: Tensor, memory: Memory) -> AttentionOutput:
        """Look once.

        Args:
            query: (B, C, Q).
            memory: Of the same B images.
        """
        kind = self.config.kind
        query = self.query(query)  # (B, C, A)
        if kind == "multi_head":
            return self._multi_head(query, memory)
        if kind == "additive":
            scores = additive_score(query.float(), memory.keys, self.score)
        else:
            scores = query @ memory.keys.transpose(1, 2).to(query.dtype)  # (B, C, L)
            if kind == "scaled_dot":
                scores = scores / math.sqrt(self.config.size)
        weights = self._weights(scores, memory)
        read, chosen = weights, None
        if self.config.mode == "hard":
            read, chosen = self._choose(weights)
        context = read.to(memory.values.dtype) @ memory.values  # (B, C, L) @ (B, L, D)
        return AttentionOutput(context, weights, chosen)

    def _choose(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hard attention (Xu et al. 2015, Section 4.1): weights (B, C, L) of a single location.

        In training the location is drawn, and half of the time the mean is read instead, as the
        paper does to quieten the gradient.
        """
        if not self.training:
            return F.one_hot(weights.argmax(-1), weights.shape[-1]), None
        drawn = torch.multinomial(weights.detach().flatten(0, 1), 1).view(weights.shape[:-1])
        mean = torch.rand_like(weights[..., 0]) < 0.5
        read = torch.where(mean[..., None], weights, F.one_hot(drawn, weights.shape[-1]))
        return read, drawn.masked_fill(mean, -1)

    def _weights(self, scores: Tensor, memory: Memory) -> Tensor:
        """Scores (..., L) to weights (..., L), in fp32."""
        weights = normalize(scores.float(), self.config.normalizer)
        if memory.spread is None:
            return weights
        with torch.autocast(weights.device.type, enabled=False):
            return weights @ memory.spread

    def _multi_head(self, query: Tensor, memory: Memory) -> AttentionOutput:
        """The same in N subspaces; the map shown is the mean over heads."""
        (batch, rows, _), heads = query.shape, self.config.heads

        def split(x: Tensor) -> Tensor:  # (B, *, N·d) -> (B, N, *, d)
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        scores = split(query) @ split(memory.keys.to(query.dtype)).transpose(-1, -2)
        scores = scores / math.sqrt(self.config.size // heads)  # (B, N, C, L)
        weights = self._weights(scores, memory)
        context = weights.to(memory.values.dtype) @ split(memory.values)  # (B, N, C, D/N)
        context = context.transpose(1, 2).reshape(batch, rows, -1)  # (B, C, D)
        return AttentionOutput(self.out(context), weights.mean(1))


def neighbour_spread(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The smoothing of maps as a matrix: (L, L), each row sums to 1.

    Along each axis a cell keeps half of its weight and gives a quarter to either neighbour; at the
    border the neighbour that is not there leaves its share to the others.
    """

    def axis(length: int) -> Tensor:
        places = torch.arange(length, device=device)
        distance = (places[:, None] - places).abs()
        shares = (2.0 - distance).clamp(min=0)
        return shares / shares.sum(1, keepdim=True)

    return torch.kron(axis(height), axis(width))


def map_entropy(weights: Tensor) -> Tensor:
    """Return the entropy of maps divided by log L: (..., L) -> (...); 1 is uniform, 0 one cell."""
    entropy = -torch.special.xlogy(weights, weights.clamp(min=1e-12)).sum(-1)
    return entropy / (math.log(weights.shape[-1]) or 1.0)  # a single cell has entropy 0
