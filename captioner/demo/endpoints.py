"""The demo for programs: named endpoints, for `gradio_client` and plain HTTP.

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
client.predict(handle_file("photo.jpg"), api_name="/caption")["caption"]

The docstrings of the endpoints are shown to those who call them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_base64_to_cache
from gradio.utils import get_upload_folder

from captioner.batch.formats import to_row
from captioner.demo.components import BATCH_QUEUE, MODEL_QUEUE
from captioner.demo.models import Models
from captioner.demo.security import MAX_FILE_BYTES, MAX_TEXT
from captioner.demo.settings import MAX_BEAM, MAX_CAPTIONS, decoding_options
from captioner.demo.uploads import Upload, caption_uploads, open_item
from captioner.errors import ConfigError, ImageError
from captioner.image.io import ImageSource

if TYPE_CHECKING:
    from captioner.api import Captioner

MAX_ALTERNATIVES = 10


def add(models: Models) -> None:
    """Add the endpoints to the current `gr.Blocks`."""

    def caption(
        photo: FileData,
        model: str = "",
        captions: int = 1,
        beam: int = 3,
        attention: bool = False,
    ) -> dict[str, Any]:
        """Write a sentence about a photo.

        Args:
            photo: The photo's file.
            model: Name of the model; empty takes the first.
            captions: How many sentences to find, best first (1 to 8).
            beam: Beams of the search (1 to 10).
            attention: Whether to return each word's map: a grid of numbers that sum to 1.

        Returns:
            The sentence as "caption", its "score" (logarithm of its probability), its "words" and
            their "log_probs"; "candidates" if several were asked for; "attention" if asked for.
        """
        captioner = _choose(models, model)
        options = _checked_options(captions, beam)
        found = captioner(_open(captioner, photo), **options)
        return dict(found.to_dict(attention=attention))

    def complete(
        photo: FileData,
        prefix: str = "",
        model: str = "",
        beam: int = 3,
        alternatives: int = 5,
    ) -> dict[str, Any]:
        """Write a sentence that begins with given words, and say what else it might have said.

        Args:
            photo: The photo's file.
            prefix: The first words; empty for none.
            model: Name of the model; empty takes the first.
            beam: Beams of the search (1 to 10).
            alternatives: How many of the likeliest words to return for each word (0 to 10).

        Returns:
            What "caption" returns for one sentence, and "alternatives": for each word, and last for
            the end of the sentence, the likeliest ones, each as "word" and "probability".
        """
        captioner = _choose(models, model)
        _check_range("alternatives", alternatives, 0, MAX_ALTERNATIVES)
        options = _checked_options(1, beam)
        options |= {"prefix": _checked_text("prefix", prefix), "alternatives": alternatives}
        found = captioner(_open(captioner, photo), **options)
        return dict(found.to_dict())

    def caption_batch(
        photos: list[FileData],
        model: str = "",
        captions: int = 1,
        beam: int = 3,
    ) -> list[dict[str, Any]]:
        """Write a sentence about each of many photos.

        Args:
            photos: Files of photos, or zips of them.
            model: Name of the model; empty takes the first.
            captions: How many sentences to find for each, best first (1 to 8).
            beam: Beams of the search (1 to 10).

        Returns:
            For each photo, in order, its "image" (the file's name) with its "caption", "score",
            "words" and "log_probs"; or with an "error" where it could not be read.
        """
        files = [_upload(photo) for photo in (photos if isinstance(photos, list) else [photos])]
        options = _checked_options(captions, beam)
        results = caption_uploads(_choose(models, model), files, options)
        return [to_row(item, result) for item, result in results]

    def score(photo: FileData, sentence: str, model: str = "") -> dict[str, Any]:
        """Score a sentence about a photo.

        Args:
            photo: The photo's file.
            sentence: The sentence, in plain English.
            model: Name of the model; empty takes the first.

        Returns:
            Its "score" (logarithm of its probability), its "words", whether each is "known" to the
            model, and the "log_probs" of the words and of the sentence's end.
        """
        captioner = _choose(models, model)
        text = _checked_text("sentence", sentence)
        result = captioner.score(_open(captioner, photo), text)
        return {
            "score": round(result.total, 5),
            "words": result.words,
            "known": result.known,
            "log_probs": [round(value, 5) for value in result.log_probs],
        }

    single = {key: MODEL_QUEUE[key] for key in ("concurrency_limit", "concurrency_id")}
    many = {key: BATCH_QUEUE[key] for key in single}
    for function in (caption, complete, score):
        gr.api(function, api_name=function.__name__, **single)
    gr.api(caption_batch, api_name=caption_batch.__name__, **many)


def _choose(models: Models, name: str) -> Captioner:
    return models[str(name) if name else models.names[0]]


def _checked_options(captions: int, beam: int) -> dict[str, Any]:
    """Return decoding options within the ranges of the page.

    Raises:
        ConfigError: A value is no whole number, or out of range.
    """
    _check_range("captions", captions, 1, MAX_CAPTIONS)
    _check_range("beam", beam, 1, MAX_BEAM)
    return decoding_options(captions=captions, beam=beam)


def _check_range(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} must be a whole number from {least} to {most}")


def _checked_text(name: str, text: Any) -> str:
    if len(str(text)) > MAX_TEXT:
        raise ConfigError(f"the {name} is longer than {MAX_TEXT} characters")
    return str(text)


def _upload(file: Any) -> Upload:
    """Check the file that a caller gives; Gradio does not check the arguments of an endpoint.

    Raises:
        ConfigError: It is no file.
    """
    if isinstance(file, str) and file.startswith("data:") and len(file) <= 2 * MAX_FILE_BYTES:
        # Gradio's MCP server passes the files of a list on like this.
        return Upload(save_base64_to_cache(file, get_upload_folder()), "photo")
    if not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise ConfigError("give a file, as gradio_client's handle_file makes it")
    name = file.get("orig_name")
    return Upload.of(file["path"], name if isinstance(name, str) else None)


def _open(captioner: Captioner, file: Any) -> ImageSource:
    """Return what the model sees of an image.

    Raises:
        ImageError: The file cannot be read as one.
    """
    image = open_item(captioner, _upload(file).item)
    if image.error is not None:
        raise ImageError(f"{image.name}: {image.error}")
    return image.source
