"""Minimum Bayes risk: choose the sentence that agrees most with all candidates, by CIDEr-D.

A search returns likely sentences; this choice returns what most of the likely sentences say
(Kumar and Byrne 2004). With u(a, b) the CIDEr-D of a against the single reference b and w the
weight of each candidate, it is argmax_a Σ_b w_b·u(a, b).

All n-grams weigh the same: the candidates of one image are no corpus to count document frequencies
in, and with those of other images the choice would depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.metrics.cider import DocumentFrequency, cider_d

_UNIFORM = DocumentFrequency([[[]], [[]]])  # no n-gram is known, so all count as equally rare


def choose(candidates: Sequence[Hypothesis], options: DecodingOptions) -> list[Hypothesis]:
    """Return the `num_captions` sentences that agree most with all candidates, best first.

    Samples weigh the same, since likely ones come often; beams weigh by their probability.
    """
    totals = np.array([sum(candidate.log_probs) for candidate in candidates])
    weights = np.ones(len(totals)) if options.sample else np.exp(totals - totals.max())
    order = mbr_order([[str(i) for i in c.words] for c in candidates], weights)
    return [candidates[place] for place in order[: options.num_captions]]


def mbr_order(
    sentences: Sequence[Sequence[str]], weights: Sequence[float] | np.ndarray
) -> list[int]:
    """Return the indices of sentences by falling expected CIDEr-D; equal ones stay in order.

    Args:
        sentences: Candidates for one image, as words.
        weights: How much each counts as a reference, at least 0.
    """
    count = len(sentences)
    pairs = cider_d(
        [a for a in sentences for _ in sentences],
        [[b] for _ in sentences for b in sentences],
        _UNIFORM,
    ).per_image.reshape(count, count)
    expected = (pairs @ np.asarray(weights, dtype=float)).round(9)
    return [int(place) for place in np.argsort(-expected, kind="stable")]
