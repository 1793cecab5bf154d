"""Several models that caption together: at every word their probabilities are averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence

from captioner.api import Captioner
from captioner.errors import ConfigError
from captioner.utils.device import Precision


class Ensemble(Captioner):
    """Captioners of one vocabulary as one.

    They may differ in everything else; each sees the photo in its own way. Attention is the mean
    of their maps where their grids agree, else the first one's. ``model``, ``header`` and
    ``preprocess`` are those of the first.

    Args:
        captioners: At least one.

    Raises:
        ConfigError: Their vocabularies differ.
    """

    def __init__(self, captioners: Sequence[Captioner]):
        first, *others = captioners
        super().__init__(first.model, first.header, str(first.device), first.precision)
        self._members = tuple(captioners)
        own = self.vocabulary.words
        for number, member in enumerate(others, 2):
            if (other := member.vocabulary.words) != own:
                lacking = sorted(set(own) - set(other))[:3]
                detail = f" and lacks {', '.join(map(repr, lacking))}" if lacking else ""
                raise ConfigError(
                    f"models of different vocabularies cannot caption together: model {number} "
                    f"has {len(other):,} entries{detail}, the first has {len(own):,}"
                )

    @property
    def members(self) -> tuple[Captioner, ...]:
        """The captioners."""
        return self._members

    @classmethod
    def load(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        *,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Ensemble:
        """Load model files.

        Raises:
            CheckpointError: A file is missing or cannot be used.
            ConfigError: The device is not there, or the vocabularies differ.
        """
        return cls(
            [Captioner.from_pretrained(path, device=device, precision=precision) for path in paths]
        )
