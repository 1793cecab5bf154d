"""Deleting cells of a photo's grid, and what that does to the words of a given sentence.

*Deleted* means replaced by the mean feature of the photo: a zero vector, or noise, would be a
feature that the decoder has never met, and its surprise would pass for the cell's importance. The
damaged grid is all that the decoder gets: it starts from it, reads it for the words before, and
shares its attention out anew. Cells are deleted behind the encoder, so the neighbours of a cell,
whose receptive fields overlap, still know something of it: what is measured is a lower bound.

Shapes: T words, L locations, N deletions, S shares, A attention size, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary

_BATCH = 32  # deletions at a time: each has its own copy of the photo's memory


@torch.no_grad()
def remember_with_mean(decoder: Decoder, grid: Grid) -> Memory:
    """The memory of one photo (1, L, D), with its mean feature as one more cell: L + 1 locations.

    Keys and values are made cell by cell, so deleting a cell is to read the last one in its place.
    """
    mean = grid.features.mean(1, keepdim=True)
    return decoder.remember(Grid(torch.cat((grid.features, mean), 1), grid.size))


@torch.no_grad()
def deleted_log_probs(
    decoder: Decoder, memory: Memory, deleted: np.ndarray, words: Sequence[int]
) -> Tensor:
    """Log-probability of every word of a sentence, told the words before it, on damaged grids.

    Args:
        decoder: In ``eval()``.
        memory: Of one photo, by `remember_with_mean`.
        deleted: (N, L) bool, the cells to delete; a row without any is the intact photo.
        words: Ids of the T words, without START and END.

    Returns:
        (N, T) fp32.
    """
    device, locations = memory.values.device, deleted.shape[1]
    cells = np.where(deleted, locations, np.arange(locations))  # (N, L), which of the L + 1 to read
    captions = torch.tensor([[Vocabulary.START, *words]], device=device)  # (1, T + 1)
    found = []
    for index in torch.from_numpy(cells).to(device).split(_BATCH):
        photos = len(index)
        damaged = Memory(memory.values[0][index], memory.keys[0][index], memory.size)
        lengths = torch.full((photos, 1), len(words), device=device)
        result = decoder(damaged, captions.expand(photos, 1, -1), lengths)
        log_probs = result.logits.float().log_softmax(-1)  # (N·T, V)
        found.append(log_probs.gather(1, result.targets[:, None]).reshape(photos, len(words)))
    return torch.cat(found)


def first_cells(order: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The first cells of an order, as many as each share of all says but at least one.

    Args:
        order: (L,) the cells' indices, the first to go first.
        shares: S shares, 0 to 1; share 0 chooses no cell.

    Returns:
        (S, L) bool.
    """
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    counts = [max(1, round(share * len(order))) if share > 0 else 0 for share in shares]
    return ranks < np.array(counts)[:, None]


def by_weight(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The cells of a map, heaviest first; equal ones in random order: (..., L) -> (L,)."""
    flat = np.ravel(weights)
    return np.lexsort((random.random(flat.size), -flat))


def from_centre(grid: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """The cells of a grid (H, W), nearest to the photo's centre first: (L,)."""
    rows, columns = (np.abs((2 * np.arange(n) + 1) / n - 1) for n in grid)
    return by_weight(-np.hypot(rows[:, None], columns), random)
