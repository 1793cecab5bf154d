"""Searches that never compare sentences: each row picks one word at a time, until all have ended.

Greedy decoding and sampling differ only in how a row picks.

Shapes: B photos, N rows per photo, T words so far, V vocabulary, L locations.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import torch
from torch import Tensor

from captioner.decoding.constraints import check_vocabulary, constrain
from captioner.decoding.options import SearchOptions
from captioner.decoding.stepper import Decoders, Hypothesis, Memories, Stepper
from captioner.text import Vocabulary

_ENDS = (Vocabulary.END, Vocabulary.PAD)


def follow_rows(
    decoder: Decoders,
    memory: Memories,
    options: SearchOptions,
    rows: int,
    pick: Callable[[Tensor, int], Tensor],
) -> list[list[Hypothesis]]:
    """Write N sentences per photo.

    Args:
        decoder: In ``eval()``.
        memory: Of the B photos.
        options: Lengths and forbidden words.
        rows: N.
        pick: Gives the next word (B, N) of constrained log-probabilities (B, N, V) at a time step.

    Returns:
        For each photo its N sentences, in the order of the rows.
    """
    stepper = Stepper(decoder, memory, rows)
    batch, device = stepper.photos, stepper.device
    words = torch.full((batch, rows), Vocabulary.START, device=device)
    history = torch.zeros(batch, rows, 0, dtype=torch.long, device=device)
    done = torch.zeros(batch, rows, dtype=torch.bool, device=device)
    scores, maps = [], []
    for length in range(options.max_length + 1):
        log_probs, attention = stepper.step(words)
        if length == 0:
            check_vocabulary(options, log_probs.shape[-1])
        log_probs = constrain(history, log_probs, options)
        words = pick(log_probs, length)  # (B, N)
        score = log_probs.gather(-1, words[..., None])  # (B, N, 1)
        done |= score.squeeze(-1) == -torch.inf  # nothing is allowed: cut short like max_length
        words = words.masked_fill(done, Vocabulary.PAD)
        history = torch.cat((history, words[..., None]), -1)
        scores.append(score)
        maps.append(attention[:, :, None])
        done |= words == Vocabulary.END
        if bool(done.all()):
            break
    score_rows, map_rows = torch.cat(scores, -1).tolist(), torch.cat(maps, 2).float().cpu()
    results = []
    for photo, sentences in enumerate(history.tolist()):
        results.append(
            [
                _hypothesis(row, score_rows[photo][n], map_rows[photo, n], options)
                for n, row in enumerate(sentences)
            ]
        )
    return results


def _hypothesis(
    row: list[int], scores: list[float], maps: Tensor, options: SearchOptions
) -> Hypothesis:
    words = list(takewhile(lambda word: word not in _ENDS, row[: options.max_length]))
    finished = row[len(words) : len(words) + 1] == [Vocabulary.END]
    log_probs = scores[: len(words) + finished]
    score = sum(log_probs) / options.divisor(len(log_probs))
    return Hypothesis(words, log_probs, score, finished, maps[: len(words)])
