"""The look of the page: Gradio's variables with the fonts of the visitor's own system.

Gradio's usual themes ask for web fonts; plain names of fonts load nothing.
"""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import fonts

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Calm neutrals and one accent, in light and dark."""
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
        color_accent="*primary_600",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
    )
