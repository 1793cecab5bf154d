"""The Python API: `Captioner` turns images into `Caption` objects.

    from captioner import Captioner
    captioner = Captioner.from_pretrained()
    caption = captioner("dog.jpg")
    print(caption.text)
    caption.overlay(1).save("where_the_model_looked_for_the_second_word.png")

What computes is a backend (`captioner.backends`); this module names no framework.

Shapes: B images, S side of the encoder's square, T words of a caption, V vocabulary,
(H, W) attention grid, L = H·W.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from captioner.backends.base import Backend, BackendName
from captioner.backends.load import installed, load_backend
from captioner.checkpoint import Header
from captioner.decoding.hypothesis import Hypothesis, score_words
from captioner.decoding.options import DecodingOptions, decoding_options
from captioner.errors import CaptionerError, CheckpointError, ConfigError
from captioner.hub import WEIGHTS, local_model
from captioner.image.io import ImageSource, open_image
from captioner.image.reader_processes import read_squares
from captioner.outputs import Caption, Failure, SentenceScore
from captioner.streaming import encode, inference, make_stepper, open_all, search_all
from captioner.tokenizer import tokenize
from captioner.utils.device import Precision
from captioner.utils.parallel import batched

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from captioner.backends.torch import TorchBackend
    from captioner.decoding.options import CallArguments, OptionArguments
    from captioner.models.caption_model import CaptionModel

__all__ = ["DEFAULT_WEIGHTS", "Caption", "Captioner", "Ensemble", "Failure", "SentenceScore"]

DEFAULT_WEIGHTS = WEIGHTS / "default.safetensors"


class Captioner:
    """A model, ready to caption.

    Args:
        model: The network in PyTorch. It is copied, so the caller's model does not change.
        header: Vocabulary and preprocessing that belong to it.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto` computes in bf16 where the device is faster with it.

    Attributes:
        backends: What computes; several if models caption together.
        header: Vocabulary, preprocessing, configuration and record of the (first) model.
        vocabulary: Its words.
        preprocess: How it sees images.
    """

    backends: tuple[Backend, ...]
    header: Header

    def __init__(
        self,
        model: CaptionModel,
        header: Header,
        device: str = "auto",
        precision: Precision = "auto",
    ):
        from captioner.backends.torch import TorchBackend

        self._use(TorchBackend(copy.deepcopy(model), header, device, precision))

    def _use(self, *backends: Backend) -> None:
        self.backends = backends
        self.header = backends[0].header
        self.vocabulary = self.header.vocabulary
        self.preprocess = self.header.preprocess

    @classmethod
    def from_backend(cls, backend: Backend) -> Captioner:
        """Make a captioner of a backend that is ready."""
        captioner = cls.__new__(cls)
        captioner._use(backend)
        return captioner

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        backend: BackendName = "auto",
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Captioner:
        """Load a model file; without a path, the model that ships with the package.

        Args:
            path: A model file or an export; or `hf-hub:owner/name[@revision]`, a model of the
                Hugging Face Hub (extra `hub`).
            backend: `torch`; `onnx` for a model with an export (see `captioner export`); `auto`
                takes onnx on a CPU if there is an export, else torch.
            device: `auto`, `cpu`, `cuda`, ...; torch only.
            precision: `auto`, `fp32` or `bf16`; torch only.

        Raises:
            CheckpointError: The file is missing or cannot be used.
            ConfigError: There is no such backend, or the device is not there.
        """
        file = installed(DEFAULT_WEIGHTS) if path is None else local_model(path)
        if file is None:
            raise CheckpointError("this installation ships no default model: name a model file")
        return cls.from_backend(load_backend(file, backend, device, precision))

    def __repr__(self) -> str:
        models = "" if len(self.backends) == 1 else f"{len(self.backends)} models, "
        return (
            f"{type(self).__name__}({models}{self.header.config.encoder.name}, "
            f"{len(self.vocabulary):,} words, backend={self.backend.name!r})"
        )

    @property
    def backend(self) -> Backend:
        """What computes the (first) model."""
        return self.backends[0]

    @property
    def batch_size(self) -> int:
        """How many images are computed together, unless the caller chooses."""
        return min(backend.batch_size for backend in self.backends)

    @property
    def torch_backend(self) -> TorchBackend:
        """The (first) model in PyTorch, for what needs gradients or parameters.

        Raises:
            ConfigError: Another backend is in use.
        """
        if self.backend.name != "torch":
            raise ConfigError("this needs the model in PyTorch: load it with backend='torch'")
        return cast("TorchBackend", self.backend)

    @property
    def model(self) -> CaptionModel:
        """The (first) network in PyTorch; see `torch_backend`."""
        return self.torch_backend.model

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a path is a str, which one can iterate over
        self, images: ImageSource, **options: Unpack[CallArguments]
    ) -> Caption: ...

    @overload
    def __call__(
        self, images: Iterable[ImageSource], **options: Unpack[CallArguments]
    ) -> list[Caption]: ...

    def __call__(
        self, images: ImageSource | Iterable[ImageSource], **options: Unpack[CallArguments]
    ) -> Caption | list[Caption]:
        """Caption one image, or several.

        Args:
            images: A path, bytes, file object, PIL image, array, tensor or Hugging Face image; or a
                list, tuple or iterator of these.
            **options: As for `stream`.

        Returns:
            One caption for one image, else a list.

        Raises:
            ImageError: An image cannot be opened (`stream` goes on instead).
        """
        several = _are_several(images)
        sources = cast("Iterable[ImageSource]", images if several else [images])
        captions: list[Caption] = []
        for result in self.stream(sources, on_error="raise", **options):
            assert isinstance(result, Caption)
            captions.append(result)
        return captions if several else captions[0]

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        **options: Unpack[OptionArguments],
    ) -> Iterator[Caption | Failure]:
        """Caption any number of images, in order, holding only a few batches at a time.

        Threads, or on a GPU processes, read the next images while this one computes.

        Args:
            sources: Images; read lazily.
            batch_size: Images encoded and decoded together; None takes 32, on a GPU 128.
            workers: Threads that read, on a GPU processes; None takes one per CPU core, at most 8
                threads. One always reads in this process.
            on_error: `yield` gives a `Failure` in the image's place, `raise` raises.
            **options: Fields of `captioner.decoding.options.DecodingOptions`: `beam`,
                `num_captions`, `max_length`, `length_penalty`, `sample`, ...; and the words `ban`,
                `require` and `prefix` of `decoding_options`.

        Yields:
            One result per image, in order.

        Raises:
            ConfigError: An option is unknown or impossible, or two contradict each other.
        """
        checked = decoding_options(self.vocabulary, **options)  # at once, not at the first result
        return self._stream(sources, batch_size or self.batch_size, workers, on_error, checked)

    def _stream(
        self,
        sources: Iterable[ImageSource],
        batch_size: int,
        workers: int | None,
        on_error: str,
        options: DecodingOptions,
    ) -> Iterator[Caption | Failure]:
        with contextlib.closing(open_all(self.backends, sources, batch_size, workers)) as opened:
            batches = batched(opened, batch_size)
            for batch, sentences in search_all(self.backends, batches, options):
                found = iter(sentences)
                for source, image in batch:
                    if not isinstance(image, CaptionerError):
                        yield self.to_caption(source, next(found))
                    elif on_error == "raise":
                        raise image
                    else:
                        yield Failure(source, str(image))

    def read(self, source: ImageSource) -> np.ndarray:
        """Open an image and bring it to the encoder's square: (S, S, 3) uint8.

        Raises:
            ImageError: It cannot be opened.
        """
        return self.preprocess.to_uint8(open_image(source, shrink_to=self.preprocess.size))

    def encode(self, pixels: np.ndarray) -> Any:
        """Encode images that `read` opened, for `backend.stepper`: (B, S, S, 3) uint8."""
        return self.backend.encode(pixels)

    def to_caption(self, source: ImageSource, hypotheses: Sequence[Hypothesis]) -> Caption:
        """Turn what a search found for an image, best first, into a `Caption`."""
        candidates = tuple(
            Caption.of(hypothesis, self.vocabulary, self.backend.grid, source)
            for hypothesis in hypotheses
        )
        return replace(candidates[0], candidates=candidates)

    def score(self, image: ImageSource, sentence: str, *, alternatives: int = 0) -> SentenceScore:
        """Return the log-probability of a sentence, word by word: log P(y_t | y_<t, image).

        Args:
            image: As for a caption.
            sentence: In plain text.
            alternatives: How many of the likeliest words to return beside each word.

        Raises:
            ImageError: The image cannot be opened.
            CaptionerError: The sentence has no words.
        """
        words = tokenize(sentence)
        if not words:
            raise CaptionerError(f"the sentence {sentence!r} has no words to score")
        ids = self.vocabulary.encode(words)
        squares = read_squares(image, [backend.header.preprocess for backend in self.backends])
        if isinstance(squares, CaptionerError):
            raise squares
        pixels = [square[None] for square in squares]
        with inference(self.backends):
            stepper = make_stepper(self.backends, encode(self.backends, pixels))
            log_probs, maps = score_words(stepper, ids)  # (T + 1, V), (T, L)
        maps = maps.reshape(-1, *self.backend.grid)
        return SentenceScore.of(words, log_probs, maps, self.vocabulary, alternatives)


class Ensemble(Captioner):
    """Captioners of one vocabulary as one: at every word their probabilities are averaged.

    They may differ in everything else; each sees the image in its own way. Attention is the mean
    of their maps where their grids agree, else the first one's. `model`, `header` and `preprocess`
    are those of the first.

    Args:
        captioners: At least one.

    Raises:
        ConfigError: Their vocabularies differ.
    """

    def __init__(self, captioners: Sequence[Captioner]):
        self._use(*(backend for captioner in captioners for backend in captioner.backends))
        own = self.vocabulary.words
        for number, backend in enumerate(self.backends[1:], 2):
            if (other := backend.header.vocabulary.words) != own:
                lacking = sorted(set(own) - set(other))[:3]
                detail = f" and lacks {', '.join(map(repr, lacking))}" if lacking else ""
                raise ConfigError(
                    f"models of different vocabularies cannot caption together: model {number} "
                    f"has {len(other):,} entries{detail}, the first has {len(own):,}"
                )

    @classmethod
    def load(cls, paths: Sequence[str | os.PathLike[str]], **options: Any) -> Ensemble:
        """Load model files.

        Args:
            paths: Model files.
            **options: As for `Captioner.from_pretrained`.

        Raises:
            CheckpointError: A file is missing or cannot be used.
            ConfigError: The device is not there, or the vocabularies differ.
        """
        return cls([Captioner.from_pretrained(path, **options) for path in paths])


def _are_several(images: object) -> bool:
    """Tell a list, tuple or iterator of images from a single image (some of which iterate too)."""
    single = (str, bytes, bytearray, memoryview, os.PathLike, Mapping)
    if isinstance(images, single) or hasattr(images, "read") or hasattr(images, "__array__"):
        return False
    return isinstance(images, Iterable)
