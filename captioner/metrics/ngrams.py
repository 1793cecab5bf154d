"""N-gram counts and input checks that the caption metrics share."""

from collections import Counter
from collections.abc import Hashable, Sequence

from captioner.errors import DataError

NGram = tuple[str, ...]
Words = Sequence[str]
Tokens = Sequence[Hashable]
"""Words, or numbers in their place."""


def count_ngrams(words: Words, max_order: int = 4) -> list[Counter[NGram]]:
    """Count the n-grams of a caption; item n - 1 of the result holds those of n words."""
    return [
        Counter(zip(*(words[start:] for start in range(order)), strict=False))
        for order in range(1, max_order + 1)
    ]


def check_captions(
    candidates: Sequence[Tokens | None], references: Sequence[Sequence[Tokens]]
) -> None:
    """Check that every image has one candidate and at least one reference.

    Raises:
        DataError: There are no images, the numbers differ, an image has no reference (the message
            names its index), or a caption is a text instead of a list of words.
    """
    if not candidates:
        raise DataError("no captions to score: give at least one candidate")
    if len(candidates) != len(references):
        raise DataError(
            f"{len(candidates)} candidates for {len(references)} sets of references: "
            "give exactly one candidate per image"
        )
    for index, candidate in enumerate(candidates):
        if isinstance(candidate, str):
            raise DataError(f"the candidate of image {index} is not tokenized: use tokenize()")
    check_references(references)


def check_references(references: Sequence[Sequence[Tokens]]) -> None:
    """Check that every image has tokenized references.

    Raises:
        DataError: One has not; the message names its index.
    """
    for index, captions in enumerate(references):
        if not captions:
            raise DataError(f"image {index} has no reference caption: leave it out or caption it")
        if isinstance(captions, str) or any(isinstance(caption, str) for caption in captions):
            raise DataError(f"a reference of image {index} is not tokenized: use tokenize()")
