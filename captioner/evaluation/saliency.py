"""Gradient saliency: which cells a word depends on, by the model's own derivative.

It is the yardstick for attention that uses no attention weights: for the same model and the same
words it asks, to first order, how the log-probability of a word would change with the features of
a cell. The derivative takes every way from the photo to the word: through what the attention reads,
through where it looks (the keys), through the words before, and through the LSTM's initial state.

The map of word t is max(0, Σ_d ∂ log p(y_t | y_<t, a) / ∂a_id · (a_id − ā_d)) for each cell i,
normalised to sum 1: gradient times input (Shrikumar et al. 2017, arXiv 1704.02685) with the photo's
mean feature ā as the input's zero point. To first order that is what the word loses when the cell
is replaced by the mean feature, which is how :mod:`captioner.evaluation.deletion` deletes cells.
Cells that speak against the word count as 0; with their magnitude the maps both met the masks and
predicted deletions less well.

Shapes: T words, L locations, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary

if TYPE_CHECKING:
    from captioner.api import Captioner
    from captioner.image.io import ImageSource


@torch.no_grad()
def photo_grid(captioner: Captioner, source: ImageSource) -> Grid:
    """The encoder's grid of one photo, (1, L, D) in fp32.

    Raises:
        ImageError: The photo cannot be opened.
    """
    grid = captioner.encode(captioner.read(source)[None])
    return Grid(grid.features.float(), grid.size)


def saliency_maps(decoder: Decoder, grid: Grid, words: Sequence[int]) -> Tensor:
    """The saliency map of every word of a sentence, each word told the true ones before it.

    Args:
        decoder: In ``eval()``.
        grid: Of one photo, (1, L, D).
        words: Ids of the T words, without START and END.

    Returns:
        (T, L) fp32, not negative, each map summing to 1; a word that no cell speaks for gets the
        uniform map.
    """
    if not words:
        return grid.features.new_zeros(0, grid.features.shape[1])
    with torch.enable_grad():
        features = grid.features.detach().clone().requires_grad_()
        log_probs = teacher_forced(decoder, Grid(features, grid.size), words)
        gradients = torch.stack(
            [
                torch.autograd.grad(log_prob, features, retain_graph=t + 1 < len(words))[0][0]
                for t, log_prob in enumerate(log_probs)
            ]
        )  # (T, L, D)
    inputs = grid.features[0] - grid.features[0].mean(0)  # (L, D)
    maps = torch.einsum("tld,ld->tl", gradients, inputs).clamp(min=0)
    total = maps.sum(-1, keepdim=True)
    return torch.where(total > 0, maps / total, 1 / maps.shape[-1])


def teacher_forced(decoder: Decoder, grid: Grid, words: Sequence[int]) -> Tensor:
    """Log-probability of every word of a sentence given one photo: (T,)."""
    tokens = torch.tensor([[[Vocabulary.START, *words]]], device=grid.features.device)
    lengths = torch.tensor([[len(words)]], device=grid.features.device)
    result = decoder(decoder.remember(grid), tokens, lengths)
    log_probs: Tensor = result.logits.float().log_softmax(-1)  # (T, V)
    return log_probs.gather(1, result.targets[:, None]).squeeze(1)
