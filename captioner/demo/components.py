"""What the tabs are made of: theme, assets, queues, and inputs whose files Gradio does not open.

Gradio's own preprocessing would open an image first, and answer decompression bombs and files that
are no images with messages of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import fonts

from captioner.demo.payload import encode_look
from captioner.demo.security import uploaded
from captioner.demo.uploads import Upload

ASSETS = Path(__file__).parent / "assets"
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_UNSEEN = ("rocket", "galaxies")  # examples of what the shipped model does badly
_UNSEEN_HINT = (
    "The rocket and the galaxies are unlike all that the model has seen: "
    '<a href="#about">what it is bad at</a>.'
)

# For events that run a model: one at a time, as each uses all cores of a CPU.
MODEL_QUEUE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
    "show_progress": "minimal",
}
# For many images at once: beside the queue of single ones, which need not wait for them.
BATCH_QUEUE: dict[str, Any] = MODEL_QUEUE | {"concurrency_id": "batch"}
# For what a page shows at the start: it waits for the models only.
START_QUEUE: dict[str, Any] = MODEL_QUEUE | {"concurrency_limit": None, "concurrency_id": "start"}


def read_asset(name: str) -> str:
    """Return the text of a file of `assets/`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Return calm neutrals and one accent, in light and dark.

    Gradio's usual themes load web fonts; plain names of fonts load nothing.
    """
    return gr.themes.Base(
        primary_hue="amber",
        secondary_hue="amber",
        neutral_hue="stone",
        radius_size="lg",
        font=[fonts.Font(name) for name in _SANS],
        font_mono=[fonts.Font(name) for name in _MONO],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",  # the usual one is too faint to read
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        color_accent="*primary_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_400",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
    )


def image_input(examples: Sequence[str] = (), *, elem_id: str, hint: bool = False) -> gr.Image:
    """Return a `gr.Image` whose value in Python is the path of the uploaded file, unopened.

    Args:
        examples: Paths of example images to offer below it.
        elem_id: Its id on the page.
        hint: Say which of the examples the shipped model does badly.
    """
    image: Any = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        label="Photo",
        show_label=False,
        placeholder="Drop a photo\nor click to choose",
        buttons=[],
        height=190,
        elem_id=elem_id,
        elem_classes="image-input",
    )
    # On the instance: beside the module of a subclass, Gradio writes a .pyi file at import.
    image.preprocess = lambda payload: None if payload is None else uploaded(payload.path)
    if examples:
        with gr.Column(elem_classes="examples"):
            gr.Examples([[path] for path in examples], image, label="Examples")
            if hint and any(Path(path).stem in _UNSEEN for path in examples):
                gr.HTML(_UNSEEN_HINT, elem_classes="hint")
    return image


def files_input(**options: Any) -> gr.File:
    """Return a `gr.File` whose value in Python is a list of `Upload`, unopened.

    Args:
        **options: As for `gr.File`: `elem_id`, ...
    """
    files: Any = gr.File(
        file_count="multiple",
        file_types=["image", ".zip"],
        label="Photos, or a zip of them",
        show_label=False,
        height=190,
        **options,
    )
    files.preprocess = list_uploads  # Gradio's own would leave a temporary file behind for each
    return files


def list_uploads(payload: Any) -> list[Upload]:
    """Return the uploads of a `FileData` or a `ListFiles`."""
    if payload is None:
        return []
    single = hasattr(payload, "path")
    return [Upload.of(file.path, file.orig_name) for file in ([payload] if single else payload)]


def drawn(value: dict[str, Any] | None, name: str, *scripts: str, **options: Any) -> gr.HTML:
    """Return a component that scripts draw.

    Args:
        value: What they are given.
        name: Of its files of `assets/`, .html and .css, to which common.css and common.js belong.
        *scripts: Files of `assets/`, in order.
        **options: As for `gr.HTML`: `elem_id`, ...
    """
    return gr.HTML(
        value,
        html_template=read_asset(f"{name}.html"),
        css_template=read_asset("common.css") + read_asset(f"{name}.css"),
        js_on_load="".join(map(read_asset, ("common.js", *scripts))),
        apply_default_css=False,
        **options,
    )


def attention_viewer(value: dict[str, Any] | None = None, *, elem_id: str) -> gr.HTML:
    """Return a component that shows what `payload.view_payload` gives.

    Its `select` event carries `index`, the sentence that was chosen; its `save` event `kind`, the
    file that is wanted; its `apply` event `place` and `word`, which is to stand there instead.
    Several may stand on one page.

    Args:
        value: The payload, or None for an empty stage.
        elem_id: Its id on the page.
    """
    scripts = ("overlay.js", "words.js", "viewer.js", "actions.js", "others.js")
    return drawn(value, "viewer", *scripts, elem_id=elem_id, **encode_look())
