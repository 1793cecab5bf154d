"""The seam between a search and what computes the network: NumPy arrays, no framework.

A `Backend` is a loaded model. It encodes images once, and makes a `Stepper` that a search then
drives word by word. Searches are in `captioner.decoding`; they know nothing but `Stepper`.

Shapes: B images, K rows per image (beams or samples), S side of the encoder's square, V vocabulary,
L = H·W locations of the attention grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from captioner.checkpoint import Header

if TYPE_CHECKING:
    from captioner.decoding.hypothesis import Hypothesis
    from captioner.decoding.options import DecodingOptions

BackendName: TypeAlias = Literal["auto", "torch", "onnx"]

BATCH_SIZE = 32
"""Images that are computed together on a CPU, unless the caller chooses."""


class Stepper(Protocol):
    """A decoder that runs over K rows of each of B images and keeps their state inside."""

    @property
    def images(self) -> int:
        """B, the images that are still searched."""

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the attention maps."""

    def step(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed the previous words of all rows and predict the next ones.

        At the start K is 1; `reorder` changes it.

        Args:
            words: (B, K) int64 ids; `Vocabulary.START` at first.

        Returns:
            Log-probabilities (B, K, V) and attention (B, K, L), both fp32. Both belong to the
            caller, who may overwrite them.
        """

    def reorder(self, parents: np.ndarray) -> None:
        """Let row k of each image continue its row `parents[:, k]`: (B, K') int64."""

    def keep(self, images: np.ndarray) -> None:
        """Go on with some of the images only: their indices (B',) int64."""


class Backend(Protocol):
    """A model that is ready to encode images and to write captions."""

    @property
    def name(self) -> str:
        """`torch` or `onnx`."""

    @property
    def header(self) -> Header:
        """Vocabulary, preprocessing, configuration and record of the model."""

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the attention maps."""

    @property
    def parameters(self) -> int:
        """The number of weights."""

    @property
    def lanes(self) -> int:
        """How many batches may be computed at once, each in a thread of its own."""

    @property
    def batch_size(self) -> int:
        """How many images to compute together, unless the caller chooses."""

    @property
    def reads_in_processes(self) -> bool:
        """Whether it computes faster than threads of one process can read images."""

    def enter_lane(self, lanes: int) -> None:
        """Limit the calling thread to its share of the cores, where `lanes` threads compute."""

    def inference(self) -> AbstractContextManager[object]:
        """Return what must be entered around `encode` and a whole search, for example autocast."""

    def encode(self, pixels: np.ndarray) -> Any:
        """Encode images as `Preprocess.to_uint8` makes them.

        Args:
            pixels: (B, S, S, 3) uint8; the backend normalises them.

        Returns:
            What `stepper` needs of them.
        """

    def stepper(self, memory: Any) -> Stepper:
        """Start to decode encoded images, with one row each."""

    def search(
        self, memory: Any, options: DecodingOptions, keys: Sequence[int]
    ) -> Callable[[], list[list[Hypothesis]]] | None:
        """Prepare a search that the device does by itself, right after `encode`.

        Args:
            memory: Encoded images.
            options: How to search or to draw.
            keys: One number per image, which selects its random stream; for `sample`.

        Returns:
            What searches and returns the sentences of each image. Images that are encoded before
            it is called are computed at the same time. None if a search has to drive `stepper`.
        """
