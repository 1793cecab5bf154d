"""Decoding options: one immutable, checked set for every kind of search."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypedDict

from captioner.errors import ConfigError
from captioner.metrics.coco_categories import word_class
from captioner.tokenizer import Vocabulary, tokenize

SPECIALS = (Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK)
_ENGLISH = 30  # function words that an English vocabulary knows at least; there are about 120
LengthPenalty: TypeAlias = "float | Literal['average']"


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How to search: by beams or, with `sample`, by drawing words.

    Attributes:
        beam: K, beams per image, all groups together; unused in sampling. None takes 3, or as many
            as sentences are asked for.
        num_captions: How many sentences to return per image; at most K, in sampling any number.
        min_length: Fewest words of a sentence.
        max_length: Most words of a sentence.
        length_penalty: α of the score log P / ((5 + n) / 6)^α over n tokens with END
            (Wu et al. 2016, Eq. 14); 0 ranks by plain probability, larger values favour longer
            sentences. `"average"` is log P / n.
        no_repeat_ngram: N: no sequence of N words occurs twice in a sentence; 0 for no limit.
        groups: Number of groups of beams, each of which avoids the words that the earlier groups
            choose at the same place (diverse beam search, Vijayakumar et al. 2016; `--diverse` on
            the command line). K must be a multiple.
        diversity: λ, the log-probability that a word loses for each beam of an earlier group that
            chose it.
        sample: Draw words at random instead of searching for the likeliest sentence.
        temperature: Divides log-probabilities before a draw: below 1, likely words gain.
        top_k: Draw among this many likeliest words only; 0 for all.
        top_p: Draw among the fewest likeliest words that have this probability together
            (Holtzman et al. 2020).
        seed: Seed of the draws; each image has a random stream of its own.
        mbr: Number of sentences to search, from which the caller takes those that agree most with
            the others (minimum Bayes risk, `captioner.decoding.mbr`); 0 for none.
        alternatives: How many of the likeliest words to return beside each word: what else the
            model might have said there.
        banned: Ids that are never produced; PAD and START never are in any case.
        required: Ids that every sentence contains (constrained beam search).
        may_repeat: Ids that a sentence may contain more than once; None for all.
        prefix_ids: Ids that every sentence begins with, in this order. The model scores them like
            all words; lengths count them, and only later words must not repeat n-grams.

    Raises:
        ConfigError: A value is impossible, or two contradict each other.
    """

    beam: int | None = None
    num_captions: int = 1
    min_length: int = 1
    max_length: int = 24
    length_penalty: LengthPenalty = 0.0
    no_repeat_ngram: int = 0
    groups: int = 1
    diversity: float = 0.5
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    mbr: int = 0
    alternatives: int = 0
    banned: Sequence[int] = SPECIALS
    required: Sequence[int] = ()
    may_repeat: Sequence[int] | None = None
    prefix_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        for wrong, message in self._contradictions():
            if wrong:
                raise ConfigError(message)

    def _contradictions(self) -> Iterable[tuple[bool, str]]:
        """Yield everything that can be wrong: whether it is, and what to say."""
        for name, least in (
            *(("groups", 1), ("beam", 1), ("num_captions", 1), ("max_length", 1)),
            *(("min_length", 0), ("no_repeat_ngram", 0), ("top_k", 0), ("mbr", 0)),
            ("alternatives", 0),
        ):
            value = getattr(self, name)
            if value is not None:
                yield value < least, f"{name} must be at least {least}, not {value}"
        shortest, longest = self.min_length, self.max_length
        yield shortest > longest, f"min_length {shortest} is above max_length {longest}"
        penalty = self.length_penalty
        bad = penalty != "average" and (isinstance(penalty, str) or not math.isfinite(penalty))
        yield bad, f"length_penalty must be a number or 'average', not {penalty!r}"
        required = set(self.required)
        yield bool(required & {*SPECIALS, Vocabulary.END}), "a special token cannot be required"
        yield bool(required & set(self.banned)), "the same word is banned and required"
        yield Vocabulary.END in self.banned, "END cannot be banned: max_length limits sentences"
        prefix = self.prefix_ids
        yield bool({*prefix} & {*SPECIALS, Vocabulary.END}), "a special token cannot be in a prefix"
        yield bool({*prefix} & set(self.banned)), "the same word is banned and in the prefix"
        room, later = longest - len(prefix), required - {*prefix}
        fits = f"do not fit into max_length {longest}"
        yield room < 0, f"the {len(prefix)} words of the prefix {fits}"
        after = " after the prefix" if prefix else ""
        yield len(later) > room, f"{len(later)} required words {fits}{after}"
        yield not 0 < self.temperature < math.inf, f"temperature {self.temperature} is not above 0"
        yield not 0 < self.top_p <= 1, f"top_p {self.top_p} is not above 0 and at most 1"
        wanted = self.candidates
        yield 0 < self.mbr < max(2, self.num_captions), f"mbr {self.mbr} leaves nothing to choose"
        if self.sample:
            yield bool(required), "required words need beam search: leave out sample"
            yield self.groups > 1, "groups are for beam search: leave out sample"
            return
        drawing = (self.temperature, self.top_k, self.top_p) != (1, 0, 1)
        yield drawing, "temperature, top_k and top_p are for sampling: add sample"
        beams = self.beams
        yield wanted > beams, f"{wanted} sentences need beam {wanted} or more, not {beams}"
        share = f"beam {beams} cannot be shared by {self.groups} groups: take a multiple"
        yield beams % self.groups > 0, share
        diversity = f"diversity {self.diversity} is not 0 or above"
        yield not 0 <= self.diversity < math.inf, diversity

    @property
    def beams(self) -> int:
        """K: `beam`, or by default 3 or the number of sentences, shared evenly by the groups."""
        if self.beam is not None:
            return self.beam
        return -(-max(3, self.candidates) // self.groups) * self.groups

    @property
    def candidates(self) -> int:
        """How many sentences a search returns at most."""
        return max(self.num_captions, self.mbr)

    @property
    def width(self) -> int:
        """Beams of one group."""
        return self.beams // self.groups

    def divisor(self, tokens: int) -> float:
        """Return what log P of a sentence of this many tokens is divided by."""
        if self.length_penalty == "average":
            return float(tokens)
        return float(((5 + tokens) / 6) ** self.length_penalty)

    def largest_divisor(self, tokens: int) -> float:
        """Return the largest divisor of a sentence of at least this many tokens."""
        grows = self.length_penalty == "average" or self.length_penalty > 0
        return self.divisor(self.max_length + 1 if grows else tokens)


class OptionArguments(TypedDict, total=False):
    """The keywords of `decoding_options`, for editors and type checkers."""

    beam: int | None
    num_captions: int
    min_length: int
    max_length: int
    length_penalty: LengthPenalty
    no_repeat_ngram: int
    groups: int
    diversity: float
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int
    mbr: int
    alternatives: int
    banned: Sequence[int]
    required: Sequence[int]
    may_repeat: Sequence[int] | None
    prefix_ids: Sequence[int]
    ban: Iterable[str]
    require: Iterable[str]
    prefix: str
    repeat_words: bool


class CallArguments(OptionArguments, total=False):
    """The keywords of a `Captioner` that is called."""

    batch_size: int | None
    workers: int | None


_ID_OPTIONS = ("banned", "required", "may_repeat", "prefix_ids")
OPTION_NAMES = tuple(
    field.name for field in fields(DecodingOptions) if field.name not in _ID_OPTIONS
)
"""The options that take numbers, as in Python, on the command line and in results files."""
WORD_OPTIONS = ("ban", "require", "prefix", "repeat_words")
"""The options about words, which `decoding_options` turns into ids."""
_ALSO_CALLED = {"diverse": "groups", "captions": "num_captions", "n": "num_captions"}


def decoding_options(
    vocabulary: Vocabulary,
    *,
    ban: Iterable[str] = (),
    require: Iterable[str] = (),
    prefix: str = "",
    repeat_words: bool = False,
    **options: Any,
) -> DecodingOptions:
    """Make decoding options, with words instead of ids.

    Args:
        vocabulary: The model's vocabulary.
        ban: Words that no sentence contains; one that the model does not know changes nothing.
        require: Words that every sentence contains.
        prefix: Text that every sentence begins with; empty for none.
        repeat_words: Let a sentence contain a word twice that is no function word. Without it "a
            girl in a blue shirt is wearing a blue shirt" is impossible. Only for English: with a
            vocabulary of another language, all words may repeat in any case.
        **options: Further fields of `DecodingOptions`.

    Raises:
        ConfigError: An option is unknown, impossible or contradicts another; a word is not a single
            word, is not known to the model, or is banned and required or in the prefix.
    """
    known = [field.name for field in fields(DecodingOptions)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *WORD_OPTIONS], 1, 0.5)
            near = [_ALSO_CALLED[name]] if name in _ALSO_CALLED else near
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown decoding option {name!r}: {hint}")
    if isinstance(ban, str) or isinstance(require, str):
        raise ConfigError("ban and require take lists of words, not one text")
    if not isinstance(prefix, str):
        raise ConfigError("prefix takes one text, not a list of words")
    banned = [word for word in map(_one_word, ban) if word in vocabulary]
    required = list(dict.fromkeys(map(_one_word, require)))
    begun = tokenize(prefix)
    if prefix.strip() and not begun:
        raise ConfigError(f"the prefix {prefix!r} has no words")
    checks = [(word, f"the required word {word!r}", "required") for word in required]
    checks += [(word, f"the word {word!r} of the prefix", "in the prefix") for word in begun]
    for word, name, place in checks:
        if word not in vocabulary:
            near = difflib.get_close_matches(word, vocabulary.words, 3, 0.6)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise ConfigError(f"the model does not know {name}{hint}")
        if word in banned:
            raise ConfigError(f"the word {word!r} is banned and {place}")
    repeatable = None if repeat_words else _function_words(vocabulary)
    return DecodingOptions(
        **{
            **options,
            "banned": (*options.get("banned", SPECIALS), *vocabulary.encode(banned)),
            "required": (*options.get("required", ()), *vocabulary.encode(required)),
            "may_repeat": options.get("may_repeat", repeatable),
            "prefix_ids": (*options.get("prefix_ids", ()), *vocabulary.encode(begun)),
        }
    )


def _function_words(vocabulary: Vocabulary) -> tuple[int, ...] | None:
    """Return the ids of the English function words; None if the vocabulary is not English."""
    known = [word for word in vocabulary.words if word_class(word) == "function"]
    return tuple(vocabulary.encode(known)) if len(known) >= _ENGLISH else None


def _one_word(text: str) -> str:
    """Return a word as the model reads it."""
    words = tokenize(text)
    if len(words) != 1:
        raise ConfigError(f"{text!r} is not one word: ban or require its words one by one")
    return words[0]
