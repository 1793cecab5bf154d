"""Gradient saliency: which cells a word depends on, by the model's own derivative.

Saliency is a yardstick for attention that does not use attention weights: for the same model and
words it estimates, to first order, how the log-probability of a word changes with the features of a
cell. The derivative follows every path from the image to the word: what the attention reads, where
it looks (the keys), the words before, and the LSTM's initial state.

The map of word t is max(0, Σ_d ∂ log p(y_t | y_<t, a) / ∂a_id · (a_id − ā_d)) for each cell i,
normalised to sum to 1: gradient times input (Shrikumar et al. 2017, arXiv 1704.02685), measured
from the image's mean feature ā. To first order it is what the word loses when the cell is replaced
by the mean feature, which is how `captioner.evaluation.faithfulness` deletes cells. Cells that make
the word less likely count as 0; with absolute values the maps matched the masks and predicted
deletions less well.

Shapes: N images, T words, L locations, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary


def word_log_probs(decoder: Decoder, memory: Memory, words: Sequence[int]) -> Tensor:
    """Return the log-probability of each word of a sentence, given the true words before it.

    Args:
        decoder: In `eval()`.
        memory: Of N images, or of N damaged copies of one.
        words: Ids of the T words, without START.

    Returns:
        (N, T) fp32.
    """
    images, device = len(memory.values), memory.values.device
    captions = torch.tensor([Vocabulary.START, *words], device=device).expand(images, 1, -1)
    lengths = torch.full((images, 1), len(words), device=device)
    output = decoder(memory, captions, lengths)
    log_probs = output.logits.float().log_softmax(-1)  # (N·T, V)
    return log_probs.gather(1, output.targets[:, None]).view(images, len(words))


def saliency_maps(decoder: Decoder, grid: Grid, words: Sequence[int]) -> Tensor:
    """Return the saliency map of every word of a sentence, given the true words before it.

    Args:
        decoder: In `eval()`.
        grid: Of one image, (1, L, D).
        words: Ids of the T words, without START and END.

    Returns:
        (T, L) fp32, not negative, each map summing to 1; uniform for a word that no cell supports.
    """
    if not words:
        return grid.features.new_zeros(0, grid.features.shape[1])
    with torch.enable_grad():
        features = grid.features.detach().clone().requires_grad_()
        memory = decoder.remember(Grid(features, grid.size))
        log_probs = word_log_probs(decoder, memory, words)[0]  # (T,)
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
