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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch

from captioner.checkpoint import Header, load_checkpoint
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions, search_options
from captioner.decoding.sampling import photo_key, sample
from captioner.decoding.stepper import Hypothesis, mean_map, mean_probability
from captioner.errors import CaptionerError, CheckpointError
from captioner.image.io import ImageSource, open_image
from captioner.models.encoder import Grid
from captioner.models.fuse_bn import fuse_bn
from captioner.outputs import Caption, Failure, SentenceScore
from captioner.tokenizer import Vocabulary, detokenize, tokenize
from captioner.utils.device import Precision, autocast, resolve_device, trunk_autocast
from captioner.utils.parallel import map_ahead

if TYPE_CHECKING:
    from captioner.models.caption_model import CaptionModel

__all__ = ["DEFAULT_WEIGHTS", "Caption", "Captioner", "Failure", "SentenceScore"]

_LANES = 4  # batches in work at once on a CPU; each holds its own activations in memory
# A source and, for each model, the square it sees.
_Picture: TypeAlias = "tuple[ImageSource, list[np.ndarray] | CaptionerError]"

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"


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
        encoder = self.model.encoder
        encoder.backbone = fuse_bn(encoder.backbone, encoder.config.image_size)
        encoder.backbone.to(memory_format=torch.channels_last)

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
            **search: Fields of :class:`~captioner.decoding.options.DecodingOptions`: ``beam``,
                ``num_captions``, ``max_length``, ``length_penalty``, ``sample``, ...; and the words
                ``ban`` and ``require`` of :func:`~captioner.decoding.options.search_options`.

        Yields:
            One result per picture, in order.

        Raises:
            ConfigError: Search options that are impossible or contradict each other.
        """
        options = search_options(self.vocabulary, **search)
        workers = workers or min(8, os.cpu_count() or 1)

        def read(source: ImageSource) -> _Picture:
            try:
                return source, self._read(source)
            except CaptionerError as error:
                return source, error

        pictures = map_ahead(read, sources, workers=workers, depth=2 * batch_size)
        for batch, sentences in self._search_all(_batches(pictures, batch_size), options):
            found = iter(sentences)
            for source, picture in batch:
                if not isinstance(picture, CaptionerError):
                    yield self.caption(source, next(found))
                elif on_error == "raise":
                    raise picture
                else:
                    yield Failure(source, str(picture))

    def _search_all(
        self, batches: Iterator[list[_Picture]], options: DecodingOptions
    ) -> Iterator[tuple[list[_Picture], list[list[Hypothesis]]]]:
        """Search batch after batch: each with the sentences of those of its photos that opened.

        On a CPU several batches are in work at once, each on its share of the cores: beam search
        is made of operations too small to share among many.
        """

        def search(batch: list[_Picture]) -> tuple[list[_Picture], list[list[Hypothesis]]]:
            squares = [picture for _, picture in batch if not isinstance(picture, CaptionerError)]
            pixels = [np.stack(each) for each in zip(*squares, strict=True)]  # one per model
            return batch, self.search(pixels, options) if pixels else []

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

    @property
    def members(self) -> tuple[Captioner, ...]:
        """The models that caption together: this one (see :mod:`captioner.ensemble`)."""
        return (self,)

    def _read(self, source: ImageSource) -> list[np.ndarray]:
        """Open a picture once and bring it to the square of each model."""
        shapes = [member.preprocess for member in self.members]
        image = open_image(source, shrink_to=max(shape.size for shape in shapes))
        return [shape.to_uint8(image) for shape in shapes]

    @torch.no_grad()
    def search(
        self, pixels: Sequence[np.ndarray], options: DecodingOptions
    ) -> list[list[Hypothesis]]:
        """Encode and decode a batch: (B, S, S, 3) uint8 per model -> per photo its sentences."""
        decoders = [member.model.decoder for member in self.members]
        with autocast(self.device, self.precision):
            memories = [
                member.model.decoder.remember(member.encode(squares))
                for member, squares in zip(self.members, pixels, strict=True)
            ]
            if options.sample:
                keys = [photo_key(square.tobytes()) for square in pixels[0]]
                found = sample(decoders, memories, options, keys)
            else:
                found = beam_search(decoders, memories, options)
        if options.mbr:
            from captioner.decoding.mbr import choose

            found = [choose(sentences, options) for sentences in found]
        return found

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Grid:
        """Encode photos that :meth:`read` opened: (B, S, S, 3) uint8 -> features (B, L, D)."""
        images = self.preprocess.normalize(torch.from_numpy(pixels).to(self.device))
        with trunk_autocast(self.device, self.precision):
            grid: Grid = self.model.encoder(images)
            return grid

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
        each, maps, sizes = [], [], []
        for member, square in zip(self.members, self._read(image), strict=True):
            with autocast(self.device, self.precision):
                memory = member.model.decoder.remember(member.encode(square[None]))
                result = member.model.decoder(memory, tokens, lengths)
            each.append(result.logits.float().log_softmax(-1))
            maps.append(result.attention[0, 0, : len(words)].float().cpu())  # (T, L)
            sizes.append(memory.size)
        log_probs = mean_probability(each)  # (T + 1, V)
        chosen = log_probs.gather(1, tokens[0, 0, 1:, None]).squeeze(1).tolist()
        return SentenceScore(
            words=words,
            known=[word in self.vocabulary for word in words],
            log_probs=chosen,
            total=sum(chosen),
            attention=mean_map(maps, sizes).reshape(-1, *sizes[0]).numpy(),
        )

    def _grid(self) -> tuple[int, int]:
        return self.model.encoder.grid_size


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
