"""Beam search as textbooks and tutorials write it: photo after photo, beam after beam.

The baseline of ``beam.py``; nothing of it is used by the package. A beam is a Python list of word
ids with its sum and its LSTM state. At every word each beam calls the decoder by itself; the
attention keys, which depend on the photo alone, are computed anew at each call, as they are where
the attention module takes the features. The continuations of all beams are sorted as tuples.

Shapes: L locations, D feature size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captioner.models.decoder import Decoder, State
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary


class Beam(NamedTuple):
    """A sentence that goes on.

    Attributes:
        total: Summed log-probability.
        words: START and the ids so far.
        maps: One attention map per word, as lists.
        state: The LSTM's, (1, 1, H_d) twice.
    """

    total: float
    words: list[int]
    maps: list[list[float]]
    state: State


@torch.no_grad()
def textbook_beam_search(
    decoder: Decoder, features: Tensor, size: tuple[int, int], width: int, max_length: int
) -> list[int]:
    """The likeliest sentence of one photo that beam search finds.

    Args:
        decoder: In ``eval()``.
        features: (1, L, D).
        size: (H, W) of the grid.
        width: K, beams.
        max_length: Most words.

    Returns:
        Its ids, without START and END.
    """
    grid = Grid(features, size)
    beams = [Beam(0.0, [Vocabulary.START], [], decoder.start(decoder.remember(grid)))]
    finished: list[tuple[float, list[int], list[list[float]]]] = []
    for length in range(max_length + 1):
        candidates = []
        for beam in beams:
            word = torch.tensor([[beam.words[-1]]], device=features.device)
            step = decoder.step(beam.state, word, decoder.remember(grid))
            log_probs = step.logits[0, 0].log_softmax(-1)  # (V,)
            log_probs[[Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]] = -torch.inf
            if length == 0:  # a caption has words
                log_probs[Vocabulary.END] = -torch.inf
            best, words = log_probs.topk(width + 1)  # one of them may end the sentence
            maps = [*beam.maps, step.attention[0, 0].tolist()]
            for log_prob, next_word in zip(best.tolist(), words.tolist(), strict=True):
                candidates.append(
                    Beam(beam.total + log_prob, [*beam.words, next_word], maps, step.state)
                )
        candidates.sort(key=lambda beam: beam.total, reverse=True)
        for beam in candidates[:width]:
            if beam.words[-1] == Vocabulary.END:
                finished.append((beam.total, beam.words[1:-1], beam.maps[:-1]))
        beams = [beam for beam in candidates if beam.words[-1] != Vocabulary.END][:width]
        if finished and max(finished)[0] >= beams[0].total:  # sums can only fall
            break
    return max(finished)[1] if finished else beams[0].words[1 : max_length + 1]
