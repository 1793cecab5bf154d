"""BLEU-1 to 4, ROUGE-L and CIDEr-D of a set of captions in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captioner.metrics.bleu import BleuScore, bleu
from captioner.metrics.cider import CiderScore, cider_d
from captioner.metrics.ngrams import Words
from captioner.metrics.rouge import RougeScore, rouge_l
from captioner.tokenizer import tokenize


@dataclass(frozen=True)
class CaptionScores:
    """All metrics, of the corpus and per image.

    Attributes:
        bleu: Orders 1 to 4.
        rouge_l: ROUGE-L.
        cider: CIDEr-D; undefined for fewer than two images.
    """

    bleu: BleuScore
    rouge_l: RougeScore
    cider: CiderScore

    def summary(self) -> dict[str, float]:
        """Return the corpus scores as fractions by name, without an undefined CIDEr-D."""
        result = {f"bleu{n}": float(score) for n, score in enumerate(self.bleu.scores, 1)}
        result["rouge_l"] = float(self.rouge_l.score)
        if self.cider.score is not None:
            result["cider"] = float(self.cider.score)
        return result


def score_captions(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> CaptionScores:
    """Score one caption per image against all references of that image.

    Args:
        candidates: Generated captions, tokenized.
        references: For each image its reference sentences as written.

    Raises:
        DataError: An image has no reference.
    """
    return score_tokens(
        candidates, [[tokenize(sentence) for sentence in sentences] for sentences in references]
    )


def score_tokens(
    candidates: Sequence[Words | None], references: Sequence[Sequence[Words]]
) -> CaptionScores:
    """Score one caption per image against references that are tokenized already.

    Args:
        candidates: Words of one caption per image. None is an image without a caption: it scores 0,
            as an empty caption does, and lowers corpus BLEU (see `bleu`).
        references: For each image the words of its references.

    Raises:
        DataError: An image has no reference.
    """
    given: list[Words] = [() if words is None else words for words in candidates]
    return CaptionScores(
        bleu(candidates, references), rouge_l(given, references), cider_d(given, references)
    )
