"""The Python face: :class:`Captioner` turns pictures into :class:`Caption` objects.

    from captioner import Captioner
    captioner = Captioner.from_pretrained()
    caption = captioner("dog.jpg")
    print(caption.text)
    caption.overlay(1).save("what_the_second_word_saw.png")

Shapes: B photos, S side of the encoder's square, T words of a caption, (H, W) attention grid.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch

from captioner.checkpoint import Header, load_checkpoint
from captioner.decoding.beam import BeamOptions, beam_search
from captioner.decoding.stepper import Hypothesis
from captioner.device import Precision, autocast, resolve_device
from captioner.errors import CaptionerError, CheckpointError
from captioner.images import ImageSource, open_image
from captioner.parallel import map_ahead
from captioner.text import Vocabulary, detokenize, tokenize

if TYPE_CHECKING:
    from PIL import Image

    from captioner.models.captioner import CaptionModel

_LANES = 4  # batches in work at once on a CPU; each holds its own activations in memory
_Picture: TypeAlias = "tuple[ImageSource, np.ndarray | CaptionerError]"

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A sentence about a picture, and where the model looked for each word.

    Attributes:
        text: The sentence.
        words: Its T words.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        score: What the search ranked by: Σ ``log_probs`` over the length penalty.
        finished: False if the sentence was cut at ``max_length``.
        attention: (T, H, W) fp32; each map sums to 1 and covers the whole picture.
        candidates: All sentences the search returned, best first, this one included.
        source: The picture as it was given.
    """

    text: str
    words: list[str]
    log_probs: list[float]
    score: float
    finished: bool
    attention: np.ndarray
    source: ImageSource = field(repr=False)
    candidates: tuple[Caption, ...] = field(default=(), repr=False)

    def overlay(self, index: int, **options: Any) -> Image.Image:
        """The picture with the attention of word ``index`` on it (see ``visualize.overlay``)."""
        from captioner.visualize import overlay

        return overlay(open_image(self.source), self.attention[index], **options)

    def strip(self, **options: Any) -> Image.Image:
        """The picture and one overlay per word, on one sheet (see ``visualize.word_strip``)."""
        from captioner.visualize import word_strip

        return word_strip(open_image(self.source), self.words, self.attention, **options)

    def to_dict(self, *, attention: bool = False) -> dict[str, Any]:
        """As plain JSON values; the maps only if asked for.

        ``candidates`` appears when the search returned several sentences.
        """
        result: dict[str, Any] = {
            "caption": self.text,
            "score": round(self.score, 5),
            "words": self.words,
            "log_probs": [round(value, 5) for value in self.log_probs],
            "finished": self.finished,
        }
        if len(self.candidates) > 1:
            result["candidates"] = [
                {"caption": other.text, "score": round(other.score, 5)} for other in self.candidates
            ]
        if attention:
            result["attention"] = np.round(self.attention.astype(float), 5).tolist()
        return result


@dataclass(frozen=True)
class Failure:
    """A picture that could not be captioned.

    Attributes:
        source: The picture as it was given.
        error: Why, in one line.
    """

    source: ImageSource = field(repr=False)
    error: str


@dataclass(frozen=True, kw_only=True)
class SentenceScore:
    """How likely the model finds a given sentence.

    Attributes:
        words: Its T words, as the model reads them.
        known: Whether each is in the vocabulary; one that is not counts as ``<unk>``.
        log_probs: Natural logarithm of each word's probability, then of the sentence's end.
        total: Their sum.
        attention: (T, H, W): where the model would have looked for each word.
    """

    words: list[str]
    known: list[bool]
    log_probs: list[float]
    total: float
    attention: np.ndarray


class Captioner:
    """A model, ready to caption.

    Args:
        model: The network.
        header: Vocabulary and preprocessing that belong to it.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto`` computes in bf16 where the device is faster with it.
    """

    def __init__(
        self,
        model: CaptionModel,
        header: Header,
        device: str = "auto",
        precision: Precision = "auto",
    ):
        self.device = resolve_device(device)
        self.precision: Precision = precision
        self.header = header
        self.vocabulary = header.vocabulary
        self.preprocess = header.preprocess
        self.model = model.eval().to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Captioner:
        """Load a model file; without a path, the model that ships with the package.

        Raises:
            CheckpointError: The file is missing or cannot be used.
            ConfigError: The device is not there.
        """
        if path is None and not DEFAULT_WEIGHTS.exists():
            raise CheckpointError("this installation ships no default model: name a model file")
        model, header = load_checkpoint(DEFAULT_WEIGHTS if path is None else Path(path))
        return cls(model, header, device, precision)

    @overload
    def __call__(self, images: list[ImageSource], **options: Any) -> list[Caption]: ...

    @overload
    def __call__(self, images: ImageSource, **options: Any) -> Caption: ...

    def __call__(
        self, images: ImageSource | list[ImageSource], **options: Any
    ) -> Caption | list[Caption]:
        """Caption one picture, or a list of them.

        Args:
            images: A path, bytes, PIL image or array; or a list of these.
            **options: As for :meth:`stream`.

        Returns:
            One caption for one picture, a list for a list.

        Raises:
            ImageError: A picture cannot be opened (:meth:`stream` goes on instead).
        """
        sources = images if isinstance(images, list) else [images]
        captions: list[Caption] = []
        for result in self.stream(sources, on_error="raise", **options):
            assert isinstance(result, Caption)
            captions.append(result)
        return captions if isinstance(images, list) else captions[0]

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        on_error: Literal["yield", "raise"] = "yield",
        **search: Any,
    ) -> Iterator[Caption | Failure]:
        """Caption any number of pictures, in order, holding only a few batches at a time.

        Threads read the next pictures while this one computes.

        Args:
            sources: Pictures; read lazily.
            batch_size: Pictures encoded and decoded together.
            workers: Threads that read; None takes one per CPU core, at most 8.
            on_error: ``yield`` gives a :class:`Failure` in the picture's place, ``raise`` raises.
            **search: Fields of :class:`~captioner.decoding.beam.BeamOptions`: ``beam``,
                ``num_captions``, ``max_length``, ``min_length``, ``length_penalty``.

        Yields:
            One result per picture, in order.
        """
        options = BeamOptions(**search)
        workers = workers or min(8, os.cpu_count() or 1)

        def read(source: ImageSource) -> _Picture:
            try:
                return source, self.read(source)
            except CaptionerError as error:
                return source, error

        pictures = map_ahead(read, sources, workers=workers, depth=2 * batch_size)
        for batch, sentences in self._search_all(_batches(pictures, batch_size), options):
            found = iter(sentences)
            for source, picture in batch:
                if isinstance(picture, np.ndarray):
                    yield self.caption(source, next(found))
                elif on_error == "raise":
                    raise picture
                else:
                    yield Failure(source, str(picture))

    def _search_all(
        self, batches: Iterator[list[_Picture]], options: BeamOptions
    ) -> Iterator[tuple[list[_Picture], list[list[Hypothesis]]]]:
        """Search batch after batch: each with the sentences of those of its photos that opened.

        On a CPU several batches are in work at once, each on its share of the cores: beam search
        is made of operations too small to share among many.
        """

        def search(batch: list[_Picture]) -> tuple[list[_Picture], list[list[Hypothesis]]]:
            pixels = [picture for _, picture in batch if isinstance(picture, np.ndarray)]
            return batch, self.search(np.stack(pixels), options) if pixels else []

        threads = torch.get_num_threads()
        most = min(threads, _LANES) if self.device.type == "cpu" else 1
        first = list(itertools.islice(batches, most))
        lanes = len(first)
        if lanes <= 1:
            yield from map(search, itertools.chain(first, batches))
            return
        try:
            yield from map_ahead(
                search,
                itertools.chain(first, batches),
                workers=lanes,
                depth=2 * lanes,
                initializer=torch.set_num_threads,  # of the thread that calls it
                initargs=(threads // lanes,),
            )
        finally:
            torch.set_num_threads(threads)  # what threads to come start with

    def read(self, source: ImageSource) -> np.ndarray:
        """Open a picture and bring it to the encoder's square: (S, S, 3) uint8.

        Raises:
            ImageError: It cannot be opened.
        """
        return self.preprocess.to_uint8(open_image(source, shrink_to=self.preprocess.size))

    @torch.no_grad()
    def search(self, pixels: np.ndarray, options: BeamOptions) -> list[list[Hypothesis]]:
        """Encode and decode a batch: (B, S, S, 3) uint8 -> per photo its best sentences."""
        images = self.preprocess.normalize(torch.from_numpy(pixels).to(self.device))
        with autocast(self.device, self.precision):
            memory = self.model.remember(images)
            return beam_search(self.model.decoder, memory, options)

    def caption(self, source: ImageSource, hypotheses: list[Hypothesis]) -> Caption:
        """Turn a photo's sentences, best first, into a :class:`Caption`."""
        size = self._grid()
        captions = []
        for hypothesis in hypotheses:
            words = self.vocabulary.decode(hypothesis.words)
            captions.append(
                Caption(
                    text=detokenize(words),
                    words=words,
                    log_probs=hypothesis.log_probs,
                    score=hypothesis.score,
                    finished=hypothesis.finished,
                    attention=hypothesis.attention.reshape(-1, *size).numpy(),  # (T, H, W)
                    source=source,
                )
            )
        return replace(captions[0], candidates=tuple(captions))

    @torch.no_grad()
    def score(self, image: ImageSource, sentence: str) -> SentenceScore:
        """Log-probability of a sentence for a picture, word by word (log P(y_t | y_<t, photo)).

        Raises:
            ImageError: The picture cannot be opened.
            CaptionerError: The sentence has no words.
        """
        words = tokenize(sentence)
        if not words:
            raise CaptionerError(f"the sentence {sentence!r} has no words to score")
        ids = self.vocabulary.encode(words)
        tokens = torch.tensor([[[Vocabulary.START, *ids, Vocabulary.END]]], device=self.device)
        lengths = torch.tensor([[len(ids) + 1]], device=self.device)
        pixels = torch.from_numpy(self.read(image)[None]).to(self.device)
        with autocast(self.device, self.precision):
            memory = self.model.remember(self.preprocess.normalize(pixels))
            result = self.model.decoder(memory, tokens, lengths)
        log_probs = result.logits.float().log_softmax(-1)
        chosen = log_probs.gather(1, result.targets[:, None]).squeeze(1).tolist()
        maps = result.attention[0, 0, : len(words)].float().cpu()  # (T, L)
        return SentenceScore(
            words=words,
            known=[word in self.vocabulary for word in words],
            log_probs=chosen,
            total=sum(chosen),
            attention=maps.reshape(-1, *memory.size).numpy(),
        )

    def _grid(self) -> tuple[int, int]:
        return self.model.encoder.grid_size


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
