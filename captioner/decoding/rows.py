"""Searches that never compare sentences: each row picks one word at a time, until all have ended.

Greedy decoding and sampling differ only in how a row picks. A photo whose rows have all ended
leaves the batch.

Shapes: B photos, B' of them still searched, N rows per photo, T words so far, V vocabulary,
L locations.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import torch
from torch import Tensor

from captioner.decoding.constraints import check_vocabulary, constrain
from captioner.decoding.options import DecodingOptions
from captioner.decoding.stepper import Decoders, Hypothesis, Memories, Stepper
from captioner.tokenizer import Vocabulary

_ENDS = (Vocabulary.END, Vocabulary.PAD)


def follow_rows(
    decoder: Decoders,
    memory: Memories,
    options: DecodingOptions,
    rows: int,
    pick: Callable[[Tensor, int, Tensor], Tensor],
) -> list[list[Hypothesis]]:
    """Write N sentences per photo.

    Args:
        decoder: In ``eval()``.
        memory: Of the B photos.
        options: Lengths and forbidden words.
        rows: N.
        pick: Gives the next word (B', N), of constrained log-probabilities (B', N, V) at a time
            step, of the photos with these places (B',).

    Returns:
        For each photo its N sentences, in the order of the rows.
    """
    stepper = Stepper(decoder, memory, rows)
    batch, device = stepper.photos, stepper.device
    photos = torch.arange(batch, device=device)  # those that go on
    words = torch.full((batch, rows), Vocabulary.START, device=device)
    history = torch.zeros(batch, rows, 0, dtype=torch.long, device=device)
    done = torch.zeros(batch, rows, dtype=torch.bool, device=device)
    scores, maps = [], []
    for length in range(options.max_length + 1):
        log_probs, attention = stepper.step(words)
        if length == 0:
            check_vocabulary(options, log_probs.shape[-1])
        log_probs = constrain(history[photos], log_probs, options)
        words = pick(log_probs, length, photos)  # (B', N)
        score = log_probs.gather(-1, words[..., None]).squeeze(-1)  # (B', N)
        over = done[photos] | (score == -torch.inf)  # nothing is allowed: cut like by max_length
        words = words.masked_fill(over, Vocabulary.PAD)
        history = torch.cat((history, _spread(words, photos, batch)[..., None]), -1)
        scores.append(_spread(score, photos, batch)[..., None])
        maps.append(_spread(attention, photos, batch)[:, :, None])
        done[photos] = over | (words == Vocabulary.END)
        stay = (~done[photos].all(1)).nonzero().squeeze(1)
        if not len(stay):
            break
        if len(stay) * 4 <= len(photos) * 3:  # leaving costs a copy of the memory: go in groups
            stepper.keep(stay)
            photos, words = photos[stay], words[stay]
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


def _spread(values: Tensor, photos: Tensor, batch: int) -> Tensor:
    """Values of some photos (B', ...) at their places among all (B, ...), zeros elsewhere."""
    return values.new_zeros(batch, *values.shape[1:]).index_copy_(0, photos, values)


def _hypothesis(
    row: list[int], scores: list[float], maps: Tensor, options: DecodingOptions
) -> Hypothesis:
    words = list(takewhile(lambda word: word not in _ENDS, row[: options.max_length]))
    finished = row[len(words) : len(words) + 1] == [Vocabulary.END]
    log_probs = scores[: len(words) + finished]
    score = sum(log_probs) / options.divisor(len(log_probs))
    return Hypothesis(words, log_probs, score, finished, maps[: len(words)])
