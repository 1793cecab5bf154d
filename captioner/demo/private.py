"""Keeps the demo to itself: uploads in a folder of its own, no download on a visitor's word."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import gradio as gr
from gradio import mcp, processing_utils
from gradio.utils import get_upload_folder

_SETTING = "GRADIO_TEMP_DIR"  # where Gradio keeps its files


class _Folder:
    """A temporary folder that goes with the process."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="captioner-demo-", dir=os.environ.get(_SETTING))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@functools.cache
def _folder() -> _Folder:
    return _Folder()


def keep_private() -> None:
    """Prepare Gradio; called before a page is built.

    Gradio serves every file of its cache to whoever knows the name, and by default all Gradio apps
    of a machine share one cache: this one gets its own, which is deleted in the end. And where a
    program gives an address instead of a file, Gradio would fetch it: here it refuses.
    """
    os.environ[_SETTING] = _folder().path
    mcp.DEFAULT_TEMP_DIR = get_upload_folder()  # read when Gradio was imported
    if not hasattr(processing_utils, "async_ssrf_protected_download"):
        raise RuntimeError("this version of Gradio downloads in another way: cannot stay offline")
    processing_utils.async_ssrf_protected_download = _refuse


def uploaded(path: str) -> str:
    """The path, if it is that of an upload or of an example.

    Gradio checks paths itself, but only of files that a program marks as such: every handler that
    gets a path from a browser comes through here.

    Raises:
        gradio.Error: It is any other file of this machine.
    """
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("Upload the file first.", print_exception=False)
    return path


async def _refuse(url: str, *_: object, **__: object) -> str:
    raise gr.Error("Upload the file: this page fetches nothing.", print_exception=False)
