"""Decoders whose gradients are known."""

from typing import get_args

import torch
from torch import nn

from captioner.config import AttentionKind
from captioner.models.attention import Memory
from captioner.models.decoder import DecoderOutput
from captioner.models.encoder import Grid
from helpers.tiny import FEATURES, SIDE

L = SIDE * SIDE


KINDS = get_args(AttentionKind)


class OneCell(nn.Module):
    """A stand-in for the decoder: word 4 is likely by the first feature of one cell, no other."""

    def __init__(self, cell, sign=1.0):
        super().__init__()
        self.cell, self.sign = cell, sign

    def remember(self, grid):
        return Memory(grid.features, grid.features, grid.size)

    def forward(self, memory, captions, lengths):
        photos, time = len(captions), int(lengths.max())
        logits = torch.zeros(photos, time, 9)
        logits[..., 4] = self.sign * memory.values[:, self.cell, :1]
        maps = torch.full((photos, 1, time, memory.values.shape[1]), 1 / L)
        targets = captions[:, 0, 1 : time + 1]
        return DecoderOutput(logits.flatten(0, 1), targets.flatten(), maps, targets[:, None] > 0)


def grid_of_one_cell(cell, height=2.0):
    features = torch.zeros(1, L, FEATURES)
    features[0, cell, 0] = height
    return Grid(features, (SIDE, SIDE))
