"""The demo's models: named at its start, loaded behind the page, chosen by name, never by path."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.checkpoint import read_header
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.api import Captioner

SHIPPED = "shipped model"


class Models:
    """Captioners by name, loaded once and shared by all visitors.

    Args:
        names: What the page calls them; the first is the default.
        load: Returns the captioners, in the order of the names.

    Raises:
        ConfigError: There are none.
    """

    def __init__(self, names: Sequence[str], load: Callable[[], Sequence[Captioner]]):
        if not names:
            raise ConfigError("the demo needs at least one model")
        self.names = list(names)
        self._load = load
        self._loaded: Future[dict[str, Captioner]] = Future()
        self._thread = threading.Thread(target=self._run, name="load models", daemon=True)
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Mapping[str, Captioner]], None]] = []

    @classmethod
    def of(cls, captioners: Mapping[str, Captioner]) -> Models:
        """Take captioners that are there already, by name."""
        return cls(list(captioners), lambda: list(captioners.values()))

    @classmethod
    def from_files(cls, files: Sequence[str] = (), *, device: str = "auto") -> Models:
        """Name model files and check their headers; they are loaded at `start`.

        Args:
            files: Without any, the model that ships with the package.
            device: As for `Captioner.from_pretrained`.

        Raises:
            CheckpointError: A file is missing or is no model file.
        """
        for file in files:
            read_header(file)

        def load() -> list[Captioner]:
            from captioner.api import Captioner

            if not files:
                return [Captioner.from_pretrained(device=device)]
            return [Captioner.from_pretrained(file, device=device) for file in files]

        return cls(_file_names(files) if files else [SHIPPED], load)

    def prepare(self, callback: Callable[[Mapping[str, Captioner]], None]) -> None:
        """Call a function with the captioners as soon as they are loaded, before visitors wait."""
        with self._lock:
            if not self._loaded.done():
                self._callbacks.append(callback)
                return
        callback(self._loaded.result())

    def start(self) -> None:
        """Begin to load the models in a thread, and caption a grey square with each.

        The first visitor then waits for no warm-up. A second call does nothing.
        """
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def _run(self) -> None:
        try:
            captioners = self._load()
            for captioner in captioners:
                captioner(np.full((64, 64, 3), 128, np.uint8))
            loaded = dict(zip(self.names, captioners, strict=True))
            with self._lock:
                for callback in self._callbacks:
                    callback(loaded)
                self._loaded.set_result(loaded)
        except BaseException as error:
            self._loaded.set_exception(error)

    def check(self) -> None:
        """Raise the error by which loading has failed, if it has.

        Raises:
            CaptionerError: A model file cannot be used, or the device is not there.
        """
        if self._loaded.done():
            self._loaded.result()

    def __getitem__(self, name: str) -> Captioner:
        """Return the captioner of this name; wait while it is loaded.

        Raises:
            ConfigError: No model of this name was given when the demo started.
            CaptionerError: Loading failed.
        """
        if name not in self.names:
            raise ConfigError(f"there is no model {name!r}: {', '.join(self.names)}")
        return self.wait()[name]

    def wait(self) -> dict[str, Captioner]:
        """Wait until all models are loaded, and return them by name.

        Raises:
            CaptionerError: Loading failed.
        """
        self.start()
        return self._loaded.result()


def _file_names(files: Sequence[str]) -> list[str]:
    """Return file names without ending; with their folder, or a number, where two are equal."""
    names: list[str] = []
    for file in files:
        path = Path(file).resolve()
        options = [path.stem, f"{path.parent.name}/{path.stem}"]
        options += [f"{path.stem} ({number})" for number in range(2, len(files) + 2)]
        names.append(next(name for name in options if name not in names))
    return names
