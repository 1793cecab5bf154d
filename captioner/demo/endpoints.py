"""The demo for programs: named endpoints, for ``gradio_client`` and plain HTTP.

from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
client.predict(handle_file("photo.jpg"), api_name="/caption")["caption"]
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.processing_utils import save_base64_to_cache
from gradio.utils import get_upload_folder

from captioner.api import Captioner
from captioner.batch.formats import JsonLinesFormat
from captioner.demo.limits import BATCH_QUEUE, MODEL_QUEUE, PHOTO, TEXT
from captioner.demo.models import Models
from captioner.demo.uploads import Upload, caption_uploads, open_photo
from captioner.errors import CaptionerError, ConfigError, ImageError
from captioner.image.io import ImageSource
from captioner.outputs import Caption

_BEAMS, _CAPTIONS = 10, 8  # at most, as on the page


def add(models: Models) -> None:
    """Add the endpoints to the current ``gr.Blocks``."""

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
            attention: Whether to give each word's map: a grid of numbers that sum to 1.

        Returns:
            The sentence as "caption", its "score" (logarithm of its probability), its "words" and
            their "log_probs"; "candidates" if several were asked for; "attention" if asked for.
        """
        captioner = _choose(models, model)
        options = _search(captions, beam)
        found: Caption = captioner(_open(captioner, photo), **options)
        return found.to_dict(attention=attention)

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
        results = caption_uploads(_choose(models, model), files, _search(captions, beam))
        return [JsonLinesFormat().row(item, result) for item, result in results]

    def score(photo: FileData, sentence: str, model: str = "") -> dict[str, Any]:
        """Tell how likely a model finds a sentence about a photo.

        Args:
            photo: The photo's file.
            sentence: In plain English.
            model: Name of the model; empty takes the first.

        Returns:
            Its "score" (logarithm of its probability), its "words", whether each is "known" to the
            model, and their "log_probs", of which the last is that of the sentence's end.
        """
        captioner = _choose(models, model)
        if len(str(sentence)) > TEXT:
            raise ConfigError(f"the sentence is longer than {TEXT} characters")
        result = captioner.score(_open(captioner, photo), str(sentence))
        return {
            "score": round(result.total, 5),
            "words": result.words,
            "known": result.known,
            "log_probs": [round(value, 5) for value in result.log_probs],
        }

    single = {key: MODEL_QUEUE[key] for key in ("concurrency_limit", "concurrency_id")}
    many = {key: BATCH_QUEUE[key] for key in single}
    for function, queue in ((caption, single), (caption_batch, many), (score, single)):
        gr.api(_told(function), api_name=function.__name__, **queue)


def _choose(models: Models, name: str) -> Captioner:
    return models[str(name) if name else models.names[0]]


def _search(captions: int, beam: int) -> dict[str, Any]:
    """Search options, within what a stranger may ask of this machine.

    Raises:
        ConfigError: A number is none, or out of range.
    """
    for name, value, most in (("captions", captions, _CAPTIONS), ("beam", beam, _BEAMS)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{name} must be a whole number from 1 to {most}")
    return {"num_captions": captions, "beam": max(beam, captions)}


def _upload(file: Any) -> Upload:
    """The file that a caller gives; Gradio checks nothing of what it hands to an endpoint.

    Raises:
        ConfigError: It is no file.
    """
    if isinstance(file, str) and file.startswith("data:") and len(file) <= 2 * PHOTO:
        # Gradio's MCP server leaves them like this where they are in a list.
        return Upload(save_base64_to_cache(file, get_upload_folder()), "photo")
    if not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise ConfigError("give a file, as gradio_client's handle_file makes it")
    name = file.get("orig_name")
    return Upload.of(file["path"], name if isinstance(name, str) else None)


def _open(captioner: Captioner, file: Any) -> ImageSource:
    """What the model sees of a photo.

    Raises:
        ImageError: It cannot be opened.
    """
    photo = open_photo(captioner, _upload(file).item)
    if photo.error is not None:
        raise ImageError(f"{photo.name}: {photo.error}")
    return photo.source


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; what a caller did wrong is told to them in a line."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _told_errors():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def _told_errors() -> Iterator[None]:
    try:
        yield
    except CaptionerError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
