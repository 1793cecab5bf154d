"""What every search drives: one decoder step over all rows, and the bookkeeping between steps.

Several decoders with one vocabulary can search together, each with its own memory of the photos:
their probabilities are averaged at every step.

Shapes: B photos, K rows per photo (beams), V vocabulary, L locations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.models.attention import Memory
from captioner.models.decoder import Decoder, State

Decoders: TypeAlias = "Decoder | Sequence[Decoder]"
Memories: TypeAlias = "Memory | Sequence[Memory]"


@dataclass(frozen=True)
class Hypothesis:
    """One sentence that a search found.

    Attributes:
        words: Ids without START and END.
        log_probs: Of each word, and last of END if the sentence ended by itself.
        score: What the search ranks by: the summed log-probability, divided by the length penalty.
        finished: Whether the model ended the sentence (else ``max_length`` cut it, or no word was
            allowed to follow).
        attention: (T, L) fp32 on the CPU, one map per word.
    """

    words: list[int]
    log_probs: list[float]
    score: float
    finished: bool
    attention: Tensor


class Stepper:
    """Runs ``decoder.step`` for K rows of each of B photos.

    Args:
        decoder: The decoder, or several.
        memory: Of the B photos; one per decoder if there are several. (A memory is a tuple, too.)
        rows: K.
    """

    def __init__(self, decoder: Decoders, memory: Memories, rows: int):
        self.decoders = list(decoder) if isinstance(decoder, Sequence) else [decoder]
        self.memories = [memory] if isinstance(memory, Memory) else list(memory)
        self.states = [
            decoder.start(memory, rows)
            for decoder, memory in zip(self.decoders, self.memories, strict=True)
        ]
        self.photos = len(self.memories[0].values)
        self.device = self.memories[0].values.device

    def step(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Feed the previous words (B, K); get log-probabilities (B, K, V) and maps (B, K, L).

        Several decoders give the logarithm of their mean probability and the mean of their maps;
        where their grids differ, the first one's map.
        """
        steps = [
            decoder.step(state, words, memory)
            for decoder, state, memory in zip(
                self.decoders, self.states, self.memories, strict=True
            )
        ]
        self.states = [step.state for step in steps]
        if len(steps) == 1:
            return steps[0].logits.float().log_softmax(-1), steps[0].attention
        log_probs = mean_probability([step.logits.float().log_softmax(-1) for step in steps])
        sizes = [memory.size for memory in self.memories]
        return log_probs, mean_map([step.attention for step in steps], sizes)

    def reorder(self, parents: Tensor) -> None:
        """Row k of each photo continues its row ``parents[:, k]``: (B, K)."""
        for place, state in enumerate(self.states):
            index = parents[..., None].expand(-1, -1, state.hidden.shape[-1])  # (B, K, H_d)
            self.states[place] = State(*(x.gather(1, index) for x in state))

    def keep(self, photos: Tensor) -> None:
        """Go on with some of the photos only: indices (B',)."""
        self.memories = [memory.select(photos) for memory in self.memories]
        self.states = [State(*(x[photos] for x in state)) for state in self.states]


def mean_probability(log_probs: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the models' probabilities."""
    return torch.stack(list(log_probs)).logsumexp(0) - math.log(len(log_probs))


def mean_map(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """The mean of the models' maps (..., L), or the first where their (H, W) differ."""
    if len(set(sizes)) > 1:
        return maps[0]
    return torch.stack([one.float() for one in maps]).mean(0)
