"""What an evaluation asks of each caption's attention: masks, saliency, deletion.

The photo's grid, which saliency and deletion need, is computed once for both.

Shapes: T words, (H, W) attention grid, L = H·W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.data.annotations import Example
from captioner.evaluation.attention import AttentionMeasure, AttentionReport, CategoryMasks

if TYPE_CHECKING:
    from captioner.api import Caption, Captioner
    from captioner.evaluation.faithfulness_report import FaithfulnessReport


class AttentionProbe:
    """Measures the attention of captions as they pass by.

    Args:
        captioner: The model that wrote them.
        photos: How many captions will come.
        masks: Object masks; the captions of photos that are not in them are not held against them.
        saliency: Also hold the saliency maps of the same words against the masks.
        deletions: Run the deletion check on so many captions, spread evenly over all.
    """

    def __init__(
        self,
        captioner: Captioner,
        photos: int,
        *,
        masks: CategoryMasks | None = None,
        saliency: bool = True,
        deletions: int = 0,
    ) -> None:
        from captioner.evaluation.faithfulness import FaithfulnessMeasure

        self._captioner = captioner
        self._masks = masks
        self._attention = AttentionMeasure(masks) if masks is not None else None
        self._saliency = AttentionMeasure(masks) if masks is not None and saliency else None
        self._deletion = FaithfulnessMeasure(captioner.model.decoder) if deletions else None
        self._photos, self._deletions = photos, min(deletions, photos)
        self._seen = 0

    def add(self, example: Example, caption: Caption) -> None:
        """Measure one caption.

        Raises:
            ImageError: The photo can no longer be read.
        """
        measured = self._masks is not None and example.image_id in self._masks
        saliency = self._saliency if measured else None
        # Every photos/deletions-th caption, so that the sample does not depend on their order.
        before, self._seen = self._seen, self._seen + 1
        share = self._deletions / self._photos
        deletion = self._deletion if int(self._seen * share) > int(before * share) else None
        if measured and self._attention is not None:
            self._attention.add(int(example.image_id), caption.words, caption.attention)
        if not caption.words or (saliency is None and deletion is None):
            return
        from captioner.evaluation.saliency import photo_grid, saliency_maps

        grid = photo_grid(self._captioner, caption.source)
        ids = self._captioner.vocabulary.encode(caption.words)
        maps = saliency_maps(self._captioner.model.decoder, grid, ids).cpu().numpy()  # (T, L)
        if saliency is not None:
            saliency.add(int(example.image_id), caption.words, maps.reshape(-1, *grid.size))
        if deletion is not None:
            deletion.add(grid, ids, caption.words, caption.attention, maps)

    @property
    def attention(self) -> AttentionReport | None:
        """The attention maps against the masks, if there are any."""
        return self._attention.report() if self._attention else None

    @property
    def saliency(self) -> AttentionReport | None:
        """The saliency maps against the masks, if asked for."""
        return self._saliency.report() if self._saliency else None

    @property
    def faithfulness(self) -> FaithfulnessReport | None:
        """The deletion check, if asked for."""
        return self._deletion.report() if self._deletion else None
