"""How much attention each place of a photo gets over a whole sentence: Σ_t α_ti, counted.

The paper's penalty wants every sum to be 1; a sentence of T words over L cells can only reach T/L
on average. The histogram shows what a model does: a peak at T/L is a flat map, weight at both ends
one that looks somewhere.

Shapes: T words, L locations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EDGES = (0.0, *(2.0**power for power in range(-10, 6)))
"""Bounds of the bins: 0, 1/1024, 1/512, ..., 16, 32. What is larger counts in the last one."""


class AttentionSums:
    """Counts of Σ_t α_ti in bins.

    ``values`` holds all that is counted, so that several processes can add theirs together.

    Attributes:
        values: (K + 2,) fp64: counts of the K bins, Σ of the sums, Σ of their squares.
    """

    def __init__(self) -> None:
        self.values = torch.zeros(len(EDGES) + 1, dtype=torch.float64)

    def add(self, attention: Tensor) -> None:
        """Count the places of some captions: (..., T, L) maps of each caption's words."""
        sums = attention.detach().double().sum(-2).flatten()  # one per caption and place
        inner = torch.tensor(EDGES[1:-1], dtype=torch.float64, device=sums.device)
        bins = torch.bucketize(sums, inner, right=True)
        counts = torch.bincount(bins, minlength=len(EDGES) - 1).double()
        moments = torch.stack((sums.sum(), sums.square().sum()))
        self.values += torch.cat((counts, moments)).cpu()

    def record(self) -> dict[str, Any]:
        """For the log: ``edges``, ``counts``, ``sum`` and ``sum_squares``."""
        *counts, total, squares = self.values.tolist()
        return {
            "edges": list(EDGES),
            "counts": [int(count) for count in counts],
            "sum": round(total, 3),
            "sum_squares": round(squares, 3),
        }
