"""What every search drives: one decoder step over all rows, and the bookkeeping between steps.

Shapes: B photos, K rows per photo (beams), V vocabulary, L locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.models.attention import Memory
from captioner.models.decoder import Decoder, State


@dataclass(frozen=True)
class Hypothesis:
    """One sentence that a search found.

    Attributes:
        words: Ids without START and END.
        log_probs: Of each word, and last of END if the sentence ended by itself.
        score: What the search ranks by: the summed log-probability, divided by the length penalty.
        finished: Whether the model ended the sentence (else ``max_length`` cut it).
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
        decoder: The decoder.
        memory: Of the B photos.
        rows: K.
        banned: Ids that are never produced; their log-probability is -inf.
    """

    def __init__(self, decoder: Decoder, memory: Memory, rows: int, banned: Sequence[int]):
        self.decoder = decoder
        self.memory = memory
        self.state = decoder.start(memory, rows)
        self.banned = list(banned)

    def step(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Feed the previous words (B, K); get log-probabilities (B, K, V) and maps (B, K, L)."""
        result = self.decoder.step(self.state, words, self.memory)
        self.state = result.state
        log_probs = result.logits.float().log_softmax(-1)
        log_probs[..., self.banned] = -torch.inf
        return log_probs, result.attention

    def reorder(self, parents: Tensor) -> None:
        """Row k of each photo continues its row ``parents[:, k]``: (B, K)."""
        index = parents[..., None].expand(-1, -1, self.state.hidden.shape[-1])  # (B, K, H_d)
        self.state = State(*(x.gather(1, index) for x in self.state))

    def keep(self, photos: Tensor) -> None:
        """Go on with some of the photos only: indices (B',)."""
        self.memory = self.memory.select(photos)
        self.state = State(*(x[photos] for x in self.state))
