"""Force and forbid words: set the log-probabilities of what must not follow to -inf.

One function serves every search. It needs only the sentences so far and the log-probabilities of
their next words, and keeps no state.

Shapes: B images (or searches), K rows of each, T words so far, V vocabulary, N words of an n-gram,
C required words.
"""

from __future__ import annotations

import numpy as np

from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary


def constrain(words: np.ndarray, log_probs: np.ndarray, options: DecodingOptions) -> None:
    """Forbid what the options forbid, in place; within the prefix, all but its next word.

    Args:
        words: (B, K, T) ids so far, without START.
        log_probs: (B, K, V) of the next word.
        options: Prefix, banned words, lengths, n-grams and words that must not repeat, required
            words.
    """
    if words.shape[-1] < len(options.prefix_ids):
        forced = options.prefix_ids[words.shape[-1]]
        kept = log_probs[..., forced].copy()
        log_probs[...] = -np.inf
        log_probs[..., forced] = kept
        return
    log_probs[..., forbidden_ids(options)] = -np.inf
    if words.shape[-1] < options.min_length:
        log_probs[..., Vocabulary.END] = -np.inf
    elif options.required:
        log_probs[..., Vocabulary.END][missing_words(words, options).any(-1)] = -np.inf
    if options.no_repeat_ngram:
        forbid_repeats(words, log_probs, options.no_repeat_ngram)
    if options.may_repeat is not None:
        may_come_again = np.isin(words, (*options.may_repeat, Vocabulary.UNK))
        said = np.where(may_come_again, Vocabulary.PAD, words)  # PAD is forbidden anyway
        np.put_along_axis(log_probs, said, -np.inf, -1)


def forbidden_ids(options: DecodingOptions) -> list[int]:
    """Return the ids that are never produced."""
    return list(dict.fromkeys((Vocabulary.PAD, Vocabulary.START, *options.banned)))


def forbid_repeats(words: np.ndarray, log_probs: np.ndarray, size: int) -> None:
    """Forbid, in place, each word that would complete an n-gram of this size a second time."""
    length = words.shape[-1]
    if length < size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(words, size, -1)  # (B, K, T - N + 1, N)
    begun = words[..., length - size + 1 :]  # (B, K, N - 1), what the next word would complete
    same = (windows[..., :-1] == begun[..., None, :]).all(-1)
    repeated = np.where(same, windows[..., -1], Vocabulary.PAD)  # PAD is forbidden anyway
    np.put_along_axis(log_probs, repeated, -np.inf, -1)


def missing_words(words: np.ndarray, options: DecodingOptions) -> np.ndarray:
    """Return which required words each sentence lacks: (B, K, T) -> (B, K, C) bool."""
    required = np.array(sorted(set(options.required)))
    return ~(words[..., None] == required).any(-2)


def check_vocabulary(options: DecodingOptions, size: int) -> bool:
    """Check ids against a vocabulary of this size.

    Returns:
        Whether a sentence can be left without an allowed next word, because n-grams or words that
        must not repeat use up a small vocabulary.

    Raises:
        ConfigError: All words are banned, or an id of the options is not in the vocabulary.
    """
    never = {*forbidden_ids(options), Vocabulary.END}
    free = size - len(never)
    if free <= 0:
        raise ConfigError("every word is banned")
    if max((*options.required, *options.prefix_ids), default=0) >= size:
        raise ConfigError(
            f"a required id or one of the prefix is outside the vocabulary of {size} entries"
        )
    once = options.may_repeat is not None and never.issuperset(options.may_repeat)
    return (options.no_repeat_ngram > 0 or once) and free <= options.max_length
