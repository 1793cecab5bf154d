"""The model files of the demo: given when it starts, chosen by name, never by a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captioner.api import Captioner
from captioner.errors import ConfigError

SHIPPED = "shipped model"


class Models:
    """Captioners by name, loaded once and shared by all visitors.

    Args:
        captioners: By the name that the page shows; the first is the default.

    Raises:
        ConfigError: There are none.
    """

    def __init__(self, captioners: dict[str, Captioner]):
        if not captioners:
            raise ConfigError("the demo needs at least one model")
        self._captioners = captioners

    @classmethod
    def load(cls, files: Sequence[str] = (), *, device: str = "auto") -> Models:
        """Load model files; without any, the model that ships with the package.

        Raises:
            CheckpointError: A file is missing or cannot be used.
            ConfigError: The device is not there.
        """
        if not files:
            return cls({SHIPPED: Captioner.from_pretrained(device=device)})
        names = _names(files)
        loaded = [Captioner.from_pretrained(file, device=device) for file in files]
        return cls(dict(zip(names, loaded, strict=True)))

    @property
    def names(self) -> list[str]:
        """As the page shows them."""
        return list(self._captioners)

    def __getitem__(self, name: str) -> Captioner:
        """The captioner of a name.

        Raises:
            ConfigError: No model of this name was given when the demo started.
        """
        try:
            return self._captioners[name]
        except KeyError:
            raise ConfigError(f"there is no model {name!r}: {', '.join(self.names)}") from None

    def warm_up(self) -> None:
        """Caption a grey square with each, so that the first visitor does not wait."""
        for captioner in self._captioners.values():
            captioner(np.full((64, 64, 3), 128, np.uint8))


def _names(files: Sequence[str]) -> list[str]:
    """File names without ending; with their folder, or a number, where two are alike."""
    names: list[str] = []
    for file in files:
        path = Path(file).resolve()
        options = [path.stem, f"{path.parent.name}/{path.stem}"]
        options += [f"{path.stem} ({number})" for number in range(2, len(files) + 2)]
        names.append(next(name for name in options if name not in names))
    return names
