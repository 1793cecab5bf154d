"""Greedy decoding: the likeliest word at every step."""

from __future__ import annotations

import torch

from captioner.decoding.options import DecodingOptions
from captioner.decoding.rows import follow_rows
from captioner.decoding.stepper import Decoders, Hypothesis, Memories
from captioner.errors import ConfigError


@torch.no_grad()
def greedy_search(
    decoder: Decoders, memory: Memories, options: DecodingOptions | None = None
) -> list[Hypothesis]:
    """Decode every photo greedily.

    Args:
        decoder: In ``eval()``; several decode together.
        memory: Of the B photos; one per decoder if there are several.
        options: Lengths and forbidden words.

    Returns:
        One hypothesis per photo.

    Raises:
        ConfigError: Words are required, which needs beam search.
    """
    options = options or DecodingOptions()
    if options.required:
        raise ConfigError("required words need beam search")
    found = follow_rows(decoder, memory, options, 1, lambda scores, *_: scores.argmax(-1))
    return [sentence for (sentence,) in found]
