"""Greedy decoding: the likeliest word at every step.

Shapes: B photos, T time, L locations. One row per photo, so the row axis is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captioner.decoding.stepper import Hypothesis, Stepper
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.text import Vocabulary

SPECIALS = (Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK)


@torch.no_grad()
def greedy_search(
    decoder: Decoder,
    memory: Memory,
    *,
    max_length: int = 24,
    min_length: int = 1,
    banned: Sequence[int] = SPECIALS,
) -> list[Hypothesis]:
    """Decode every photo greedily.

    Args:
        decoder: In ``eval()``.
        memory: Of the B photos.
        max_length: Most words of a sentence.
        min_length: Fewest words of a sentence.
        banned: Ids that are never produced.

    Returns:
        One hypothesis per photo.
    """
    batch, device = memory.values.shape[0], memory.values.device
    stepper = Stepper(decoder, memory, 1, banned)
    words = torch.full((batch, 1), Vocabulary.START, device=device)
    done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    tokens, scores, maps = [], [], []
    for length in range(max_length + 1):
        log_probs, attention = stepper.step(words)
        if length < min_length:
            log_probs[..., Vocabulary.END] = -torch.inf
        best, words = log_probs.max(-1)  # (B, 1)
        tokens.append(words.masked_fill(done, Vocabulary.PAD))
        scores.append(best)
        maps.append(attention)
        done |= words == Vocabulary.END
        if bool(done.all()):
            break
    token_rows = torch.cat(tokens, 1).tolist()  # (B, T)
    score_rows = torch.cat(scores, 1).tolist()
    attention = torch.cat(maps, 1).float().cpu()  # (B, T, L)
    hypotheses = []
    for photo, row in enumerate(token_rows):
        finished = Vocabulary.END in row
        length = row.index(Vocabulary.END) if finished else max_length
        log_probs = score_rows[photo][: length + finished]
        hypotheses.append(
            Hypothesis(row[:length], log_probs, sum(log_probs), finished, attention[photo, :length])
        )
    return hypotheses
