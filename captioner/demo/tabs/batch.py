"""The tab for many photos: files or zips in, a table out, to be taken home as JSON Lines or CSV."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from captioner.batch.formats import CsvFormat, Format, JsonLinesFormat
from captioner.batch.item import Result
from captioner.demo.limits import BATCH_QUEUE, PHOTOS, UPLOAD
from captioner.demo.models import Models
from captioner.demo.payload import error_payload
from captioner.demo.settings import Settings, search_options
from captioner.demo.uploads import Photo, Upload, caption_uploads, count_uploads
from captioner.demo.viewer import read_asset
from captioner.errors import CaptionerError

_EVERY = 0.3  # seconds between two updates of the table
_HINT = f"Up to {PHOTOS} photos at a time, each file or zip up to {UPLOAD.upper()[:-2]} MB."


def build(models: Models) -> None:
    """Lay out the tab inside the current ``gr.Blocks``."""
    with gr.Row(elem_classes="caption-tab"):  # laid out by assets/page.css
        with gr.Column(elem_classes="input"):
            files = files_input(elem_id="files")
            gr.HTML(_HINT, elem_classes="hint")
            with gr.Row(elem_classes="take-home"):
                lines = gr.DownloadButton(
                    "JSON Lines", size="sm", interactive=False, elem_id="take-jsonl"
                )
                cells = gr.DownloadButton("CSV", size="sm", interactive=False, elem_id="take-csv")
        with gr.Column(elem_classes="result"):
            table = gr.HTML(
                None,
                html_template=read_asset("table.html"),
                css_template=read_asset("table.css"),
                js_on_load=read_asset("table.js"),
                apply_default_css=False,
                elem_id="table",
            )
        with (
            gr.Column(elem_classes="settings"),
            gr.Accordion("Settings", open=False, elem_id="batch-settings"),
        ):
            settings = Settings(models, prefix="batch-", captions=1, looks=False)
            again = gr.Button("Caption again", size="sm", elem_id="batch-again")

    shown = [table, lines, cells]
    event = gr.on(
        [files.upload, again.click],
        partial(on_files, models, table.GRADIO_CACHE),
        [files, settings.model, *settings.search],
        shown,
        trigger_mode="once",
        **BATCH_QUEUE,
    )
    files.clear(_nothing, None, shown, queue=False, api_visibility="private", cancels=[event])


def files_input(**options: Any) -> gr.File:
    """A ``gr.File`` whose value in Python is a list of :class:`Upload`, unopened."""
    files: Any = gr.File(
        file_count="multiple",
        file_types=["image", ".zip"],
        label="Photos, or a zip of them",
        show_label=False,
        height=190,
        **options,
    )
    files.preprocess = _uploads  # Gradio's own would leave a temporary file behind for each
    return files


def _uploads(payload: Any) -> list[Upload]:
    """Of a ``FileData`` or a ``ListFiles``."""
    if payload is None:
        return []
    single = hasattr(payload, "path")
    return [Upload.of(file.path, file.orig_name) for file in ([payload] if single else payload)]


def on_files(
    models: Models, cache: str, files: Sequence[Upload], model: str, *search: Any
) -> Iterator[tuple[Any, ...]]:
    """Caption the files: the table as it grows, at last with the two files to take home.

    Args:
        models: To choose among.
        cache: Gradio's, for these files.
        files: What was uploaded.
        model: Its name.
        *search: Values of :attr:`Settings.search`.
    """
    if not files:
        yield _nothing()
        return
    waiting = _nothing()[1:]
    options = search_options(*search)
    forms: dict[str, Format] = {
        "captions.jsonl": JsonLinesFormat(),
        "captions.csv": CsvFormat(options["num_captions"]),
    }
    records = {name: [form.header] for name, form in forms.items()}
    rows: list[dict[str, Any]] = []
    total = count_uploads(files)
    yield {"rows": [], "total": total, "done": False}, *waiting
    shown_at = time.monotonic()
    try:
        for photo, result in caption_uploads(models[model], files, options):
            rows.append(row_payload(photo, result))
            for name, form in forms.items():
                records[name].append(form.encode(photo, result) or "")
            if time.monotonic() - shown_at > _EVERY:
                yield {"rows": list(rows), "total": total, "done": False}, *waiting
                shown_at = time.monotonic()
    except CaptionerError as error:
        yield error_payload(str(error)), *waiting
        return
    made = [
        save_bytes_to_cache("".join(texts).encode(), name, cache) for name, texts in records.items()
    ]
    ready = [gr.update(value=path, interactive=True) for path in made]
    yield {"rows": rows, "total": len(rows), "done": True}, *ready


def row_payload(photo: Photo, result: Result) -> dict[str, Any]:
    """A row for the page, which sets all of it as text."""
    row: dict[str, Any] = {"name": photo.name}
    if photo.thumbnail:
        encoded = base64.b64encode(photo.thumbnail).decode("ascii")
        row["thumbnail"] = "data:image/jpeg;base64," + encoded
    if isinstance(result, str):
        return {**row, "error": result}
    others = [other.text for other in result.candidates[1:]]
    return {**row, "caption": result.text, "score": round(result.score, 2), "others": others}


def _nothing() -> tuple[Any, ...]:
    """The empty table, and nothing to take home."""
    return None, *[gr.update(value=None, interactive=False)] * 2
