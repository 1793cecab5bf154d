"""Files made for each image: text files beside the images, attention strips in a folder.

Every file name follows from the image's own path, whatever other images the run has, so processes
that share a run and runs that are resumed agree on it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
from collections.abc import Iterable, Sequence

from captioner.batch.formats import PreviousResult, texts, to_row
from captioner.batch.item import Item, Result
from captioner.batch.journal import Mode
from captioner.batch.sources import STDIN, STRIP_SUFFIX
from captioner.errors import CaptionerError
from captioner.image.io import IMAGE_SUFFIXES
from captioner.outputs import Caption, Failure
from captioner.utils.files import remove_leftovers, write_atomically

_LONGEST = 255  # bytes of a file name


class SidecarWriter:
    """A text file beside each image, as many training tools expect captions: one caption per line.

    The sidecar of `photo.jpg` is `photo.txt`. If `photo.png` lies in the same folder, its sidecar
    is `photo.png.txt`: the first name in alphabetical order gets the short one.

    Args:
        mode: What to do with a sidecar that exists: `new` reports the image as failed, `resume`
            keeps it as the result of an earlier run, `overwrite` replaces it.
    """

    shows_errors = False

    def __init__(self, mode: Mode = "new"):
        self.mode = mode
        self._folder: str | None = None
        self._shared: dict[str, str] = {}

    def refuse(self, item: Item) -> str | None:
        """See `writers.Writer.refuse`."""
        path = self._sidecar(item)
        if path is None:
            return "has no folder of its own for a sidecar"
        name = path.removesuffix(".txt")
        if name == item.source and any(os.path.exists(name + suffix) for suffix in IMAGE_SUFFIXES):
            return f"another photo has the sidecar {os.path.basename(path)} too"
        if self.mode == "new" and os.path.lexists(path):
            return "its sidecar exists already (--resume keeps it, --overwrite replaces it)"
        return None

    def previous(self, item: Item) -> PreviousResult | None:
        """See `writers.Writer.previous`."""
        if item.error is not None:  # a sidecar that is there is another image's
            return None
        path = self._sidecar(item)
        done = self.mode == "resume" and path is not None and os.path.exists(path)
        return PreviousResult(item.name, None) if done else None

    def late(self, items: Sequence[Item]) -> list[PreviousResult | None]:
        """See `writers.Writer.late`."""
        return [None] * len(items)

    def write(self, item: Item, result: Result) -> None:
        """See `writers.Writer.write`."""
        path = self._sidecar(item)
        if path is not None and not isinstance(result, Failure):
            write_atomically(path, "\n".join([*texts(to_row(item, result)), ""]).encode())

    def close(self, complete: bool) -> None:
        """See `writers.Writer.close`."""

    def _sidecar(self, item: Item) -> str | None:
        """Return the path of the text file beside an image, None if the image is not a file."""
        if not isinstance(item.source, (str, os.PathLike)):
            return None
        path = os.fspath(item.source)
        folder, name = os.path.split(path)
        stem, suffix = os.path.splitext(name)
        if folder != self._folder:
            names: list[str] = []
            with contextlib.suppress(OSError):  # opening the images will say so
                names = sorted(os.listdir(folder or "."))
            self._folder, self._shared = folder, _shared_stems(names)
            if os.name == "posix":  # elsewhere a signal of 0 is no question
                remove_leftovers(folder, names)
        if suffix.lower() in IMAGE_SUFFIXES and self._shared.get(stem, name) == name:
            return os.path.join(folder, stem + ".txt")
        return path + ".txt"


def _shared_stems(names: Iterable[str]) -> dict[str, str]:
    """Return the names that several images of a folder share but for the ending -> the first."""
    first: dict[str, str] = {}
    shared: dict[str, str] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and first.setdefault(stem, name) != name:
            shared[stem] = first[stem]
    return shared


class StripFolder:
    """A folder of attention strips: a PNG per image, with a picture per word.

    The strip of `trip/day1/dog.jpg` is `FOLDER/day1/dog.jpg.attention.png` if `trip` is the source.

    Args:
        folder: Created if needed.
        sources: The paths on the command line.
        image_root: The folder that relative names in lists start from.
        font: A TrueType or OpenType file; None chooses one that has the letters.

    Raises:
        CaptionerError: The folder cannot be created.
    """

    def __init__(
        self,
        folder: str,
        sources: Sequence[str],
        image_root: str | None = None,
        font: str | None = None,
    ):
        self.folder = folder
        self._font = font
        self._paths = RelativePaths(sources, image_root)
        make_folder(folder)

    def path(self, item: Item) -> str:
        """Return the path of an image's strip."""
        source = item.source
        full = item.name
        if isinstance(source, (str, os.PathLike)):
            full = os.path.abspath(os.fspath(source))
        folder, name = os.path.split(self._paths.of(full))
        if len(os.fsencode(name + STRIP_SUFFIX)) > _LONGEST:
            name = f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
        return os.path.join(self.folder, folder, name + STRIP_SUFFIX)

    def write(self, item: Item, caption: Caption) -> None:
        """Draw and save the strip of an image.

        Raises:
            ImageError: The image has vanished since it was captioned.
            CaptionerError: The strip cannot be written.
        """
        buffer = io.BytesIO()
        caption.strip(font=self._font).save(buffer, "PNG")
        path = self.path(item)
        make_folder(os.path.dirname(path))
        write_atomically(path, buffer.getvalue())


class RelativePaths:
    """Gives every image a path below an output folder.

    Paths start at the folder that all sources have in common: images of `trip/` become `a.jpg` and
    `day1/b.jpg`. Images from elsewhere, such as a list's absolute paths, keep their whole path.

    Args:
        sources: The paths on the command line.
        image_root: The folder that relative names in lists start from.

    Attributes:
        places: The folders of the sources, as far as the command line tells.
        base: The folder that they have in common, absolute; empty if there is none.
    """

    def __init__(self, sources: Sequence[str], image_root: str | None = None):
        self.places = list(dict.fromkeys(_place(source, image_root) for source in sources))
        self.base = ""
        with contextlib.suppress(ValueError):  # none; or on Windows, on different drives
            self.base = os.path.commonpath([os.path.abspath(place) for place in self.places])

    def of(self, name: str) -> str:
        """Return the relative path for an image; `..` never leads out of the output folder.

        Args:
            name: The path of the image, or its name if it is not a file.
        """
        path = os.path.abspath(name)
        if self.base and is_within(path, self.base):
            return os.path.relpath(path, self.base)
        # As if the name began at the root, where ".." leads nowhere.
        return os.path.normpath(os.sep + os.path.splitdrive(name)[1]).lstrip(os.sep)


def make_folder(folder: str) -> None:
    """Create a folder if needed.

    Raises:
        CaptionerError: It cannot be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise CaptionerError(f"cannot make the folder {folder}: {error.strerror}") from None


def is_within(path: str, folder: str) -> bool:
    """Return whether an absolute path is in a folder, or is the folder itself."""
    with contextlib.suppress(ValueError):  # on Windows: on different drives
        return os.path.commonpath([path, folder]) == folder
    return False


def _place(source: str, image_root: str | None) -> str:
    """Return the folder of a source's images, as far as the command line tells."""
    if source == STDIN:
        return image_root or "."
    if os.path.isdir(source):
        return source
    if glob.has_magic(source) and not os.path.lexists(source):
        while glob.has_magic(source):
            source = os.path.dirname(source)
        return source or "."
    if image_root is not None and os.path.splitext(source)[1].lower() not in IMAGE_SUFFIXES:
        return image_root
    return os.path.dirname(source) or "."
