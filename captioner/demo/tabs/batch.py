"""The tab for many images: files or zips in, a table out, saved as JSON Lines or CSV."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from captioner.batch.item import Result
from captioner.demo.components import BATCH_QUEUE, drawn, files_input
from captioner.demo.downloads import CaptionTables
from captioner.demo.models import Models
from captioner.demo.payload import chance, error_payload
from captioner.demo.security import MAX_FILE_BYTES, MAX_IMAGES, MAX_UPLOAD_BYTES
from captioner.demo.settings import Settings, decoding_options, word_notes
from captioner.demo.uploads import OpenedImage, Upload, caption_uploads, count_uploads
from captioner.errors import CaptionerError
from captioner.outputs import Failure

if TYPE_CHECKING:
    from captioner.api import Captioner

_EVERY = 0.3  # seconds between two updates of the table
_HINT = (
    f"Up to {MAX_IMAGES} photos at a time, each file or zip up to {MAX_FILE_BYTES >> 20} MB, "
    f"together up to {MAX_UPLOAD_BYTES >> 20} MB."
)


def build(models: Models) -> None:
    """Lay out the tab inside the current `gr.Blocks`."""
    with gr.Row(elem_classes="caption-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            files = files_input(elem_id="files")
            gr.HTML(_HINT, elem_classes="hint")
            with gr.Row(elem_classes="save"):
                lines = gr.DownloadButton(
                    "JSON Lines", size="sm", interactive=False, elem_id="take-jsonl"
                )
                cells = gr.DownloadButton("CSV", size="sm", interactive=False, elem_id="take-csv")
        with gr.Column(elem_classes="result"):
            table = drawn(None, "table", "table.js", elem_id="table")
        with (
            gr.Column(elem_classes="settings"),
            gr.Accordion("Settings", open=False, elem_id="batch-settings"),
        ):
            settings = Settings(models, prefix="batch-", captions=1, looks=False)
            again = gr.Button("Caption again", size="sm", elem_id="batch-again")

    shown = [table, lines, cells]
    running: list[Any] = [
        event(
            partial(on_files, models, table.GRADIO_CACHE, anew),
            [files, settings.model, *settings.search],
            [*shown, *settings.words],
            trigger_mode="once",
            show_progress_on=table,
            **BATCH_QUEUE,
        )
        for event, anew in ((files.upload, True), (again.click, False))
    ]
    files.clear(_nothing, None, shown, queue=False, api_visibility="private", cancels=running)


def on_files(
    models: Models, cache: str, anew: bool, files: Sequence[Upload], model: str, *search: Any
) -> Iterator[tuple[Any, ...]]:
    """Caption the files; yield the table as it grows, at last with the two files to save.

    What is wrong with required and banned words is told at their fields.

    Args:
        models: To choose among.
        cache: Gradio's folder for files to save.
        anew: Whether these files are new; else the table stays where no search is possible.
        files: What was uploaded.
        model: Name of the model.
        *search: Values of `Settings.search`.
    """
    options = decoding_options(*search)
    notes, wrong = word_notes(models[model].vocabulary, options)
    if wrong and not anew:
        yield *[gr.skip()] * 3, *notes
        return
    for shown in _caption_all(models[model], cache, files, options):
        yield *shown, *notes


def _caption_all(
    captioner: Captioner, cache: str, files: Sequence[Upload], options: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    if not files:
        yield _nothing()
        return
    waiting = _nothing()[1:]
    tables = CaptionTables(options["num_captions"])
    rows: list[dict[str, Any]] = []
    total = count_uploads(files)
    yield {"rows": [], "total": total, "done": False}, *waiting
    shown_at = time.monotonic()
    try:
        for image, result in caption_uploads(captioner, files, options):
            rows.append(row_payload(image, result))
            tables.add(image, result)
            if time.monotonic() - shown_at > _EVERY:
                yield {"rows": list(rows), "total": total, "done": False}, *waiting
                shown_at = time.monotonic()
    except CaptionerError as error:
        yield error_payload(str(error)), *waiting
        return
    made = [save_bytes_to_cache(data, name, cache) for name, data in tables.files().items()]
    ready = [gr.update(value=path, interactive=True) for path in made]
    yield {"rows": rows, "total": len(rows), "done": True}, *ready


def row_payload(image: OpenedImage, result: Result) -> dict[str, Any]:
    """Return a row in the form that the page draws; it sets all of it as text."""
    row: dict[str, Any] = {"name": image.name}
    if image.thumbnail:
        encoded = base64.b64encode(image.thumbnail).decode("ascii")
        row["thumbnail"] = "data:image/jpeg;base64," + encoded
    if isinstance(result, Failure):
        return {**row, "error": result.error}
    others = [other.text for other in result.candidates[1:]]
    likely = chance(math.fsum(result.log_probs))
    return {**row, "caption": result.text, "chance": likely, "others": others}


def _nothing() -> tuple[Any, ...]:
    """Return the empty table, and nothing to save."""
    return None, *[gr.update(value=None, interactive=False)] * 2
