"""What a sentence may not become: log-probabilities of forbidden next words turn into -inf.

One function serves every search. It sees the sentences so far and the log-probabilities of their
next words, so it needs no state of its own.

Shapes: B photos (or searches), K rows of each, T words so far, V vocabulary, N of an n-gram,
C required words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary


def constrain(words: Tensor, log_probs: Tensor, options: DecodingOptions) -> Tensor:
    """Forbid what the options forbid.

    Args:
        words: (B, K, T) ids so far, without START.
        log_probs: (B, K, V) of the next word; changed in place.
        options: Banned words, lengths, n-grams that must not repeat, required words.

    Returns:
        ``log_probs``.
    """
    log_probs[..., forbidden_ids(options)] = -torch.inf
    if words.shape[-1] < options.min_length:
        log_probs[..., Vocabulary.END] = -torch.inf
    elif options.required:
        missing = missing_words(words, options).any(-1)  # (B, K)
        log_probs[..., Vocabulary.END].masked_fill_(missing, -torch.inf)
    if options.no_repeat_ngram:
        block_repeats(words, log_probs, options.no_repeat_ngram)
    return log_probs


def forbidden_ids(options: DecodingOptions) -> list[int]:
    """Ids that are never produced."""
    return list(dict.fromkeys((Vocabulary.PAD, Vocabulary.START, *options.banned)))


def block_repeats(words: Tensor, log_probs: Tensor, size: int) -> None:
    """Forbid every word that would complete an n-gram of this size a second time, in place."""
    length = words.shape[-1]
    if length < size:
        return
    windows = words.unfold(-1, size, 1)  # (B, K, T - N + 1, N)
    begun = words[..., length - size + 1 :]  # (B, K, N - 1), what the next word would complete
    same = (windows[..., :-1] == begun[..., None, :]).all(-1)
    log_probs.scatter_(-1, windows[..., -1].where(same, Vocabulary.PAD), -torch.inf)


def missing_words(words: Tensor, options: DecodingOptions) -> Tensor:
    """Which required words a sentence does not have yet: (B, K, T) -> (B, K, C) bool."""
    required = torch.tensor(sorted(set(options.required)), device=words.device)
    return ~(words[..., None] == required).any(-2)


def check_vocabulary(options: DecodingOptions, size: int) -> bool:
    """Check ids against a vocabulary of this size.

    Returns:
        Whether sentences can get stuck: have no allowed next word at all, because n-grams that
        must not repeat use up a small vocabulary.

    Raises:
        ConfigError: All words are banned, or a required id is not in the vocabulary.
    """
    free = size - len({*forbidden_ids(options), Vocabulary.END})
    if free <= 0:
        raise ConfigError("every word is banned")
    if max(options.required, default=0) >= size:
        raise ConfigError(f"a required id is outside the vocabulary of {size} entries")
    return options.no_repeat_ngram > 0 and free <= options.max_length
