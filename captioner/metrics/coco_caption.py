"""The caption metrics of a set of photos in one call: BLEU-1..4, ROUGE-L and CIDEr-D."""

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
    """All metrics, corpus and per photo.

    Attributes:
        bleu: Orders 1 to 4.
        rouge_l: ROUGE-L.
        cider: CIDEr-D; undefined on fewer than two photos.
    """

    bleu: BleuScore
    rouge_l: RougeScore
    cider: CiderScore

    def summary(self) -> dict[str, float]:
        """Corpus scores as fractions by name; CIDEr-D is left out where it is undefined."""
        result = {f"bleu{n}": float(score) for n, score in enumerate(self.bleu.scores, 1)}
        result["rouge_l"] = float(self.rouge_l.score)
        if self.cider.score is not None:
            result["cider"] = float(self.cider.score)
        return result


def score_captions(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> CaptionScores:
    """Score one caption per photo against all references of that photo.

    Args:
        candidates: Generated captions as words of our tokenizer.
        references: For each photo its reference sentences as written.

    Raises:
        DataError: A photo without references.
    """
    return score_tokens(
        candidates, [[tokenize(sentence) for sentence in sentences] for sentences in references]
    )


def score_tokens(
    candidates: Sequence[Words | None], references: Sequence[Sequence[Words]]
) -> CaptionScores:
    """The same for references that are tokenized already.

    Args:
        candidates: Words of one caption per photo. None is a photo that was left out: it scores 0,
            as an empty caption does, and lowers corpus BLEU (see :func:`~.bleu.bleu`).
        references: For each photo the words of its references.

    Raises:
        DataError: A photo without references.
    """
    given: list[Words] = [() if words is None else words for words in candidates]
    return CaptionScores(
        bleu(candidates, references), rouge_l(given, references), cider_d(given, references)
    )
