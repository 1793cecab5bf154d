"""Copies of the images with the caption in their metadata, where photo managers look for it.

The caption becomes the XMP `dc:description` and, if the format has it, the IPTC `Caption-Abstract`;
all other metadata stays. Pixels are not encoded again. Exiv2 does the work through pyexiv2, which
is under the GPL and therefore an extra.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from captioner.batch.item import Item
from captioner.batch.journal import Mode
from captioner.batch.sidecars import RelativePaths, is_within, make_folder
from captioner.errors import ConfigError, ImageError
from captioner.image.io import IMAGE_SUFFIXES
from captioner.outputs import Caption
from captioner.utils.files import write_atomically

_LONGEST = 255  # bytes of a file name
_SIGNATURES = {  # first bytes of the formats that can carry a caption
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


class MetadataFolder:
    """A folder of captioned copies, with the same sub-folders as the images.

    Images in archives and tables are copied out of them.

    Args:
        folder: Created if needed.
        sources: The paths on the command line.
        mode: What to do with a copy that exists: `new` leaves it and reports the image, `resume`
            takes it as done, `overwrite` replaces it.
        image_root: The folder that relative names in lists start from.
        recursive: Whether sub-folders of the sources are searched.

    Raises:
        ConfigError: pyexiv2 is not installed, or the folder is that of the images.
        CaptionerError: The folder cannot be created.
    """

    def __init__(
        self,
        folder: str,
        sources: Sequence[str],
        mode: Mode = "new",
        *,
        image_root: str | None = None,
        recursive: bool = False,
    ):
        _import_pyexiv2()
        self.folder = os.path.abspath(folder)
        self.mode = mode
        self._taken: set[int] = set()  # hashes, not names: there may be a million
        self._paths = RelativePaths(sources, image_root)
        real = os.path.realpath(folder)
        roots = [os.path.realpath(p) for p in (self._paths.base, *self._paths.places) if p]
        walked = [os.path.realpath(source) for source in sources if os.path.isdir(source)]
        if real in roots or (recursive and any(is_within(real, root) for root in walked)):
            raise ConfigError(f"--write-metadata {folder} is where the photos are: choose another")
        make_folder(folder)

    def has(self, item: Item) -> bool:
        """Return whether there is a copy of an image that an earlier run captioned.

        Called instead of `write`, in the order of the items.
        """
        with contextlib.suppress(ImageError):
            path, _ = self._claim(item)
            return os.path.exists(path)
        return False

    def write(self, item: Item, caption: Caption) -> None:
        """Write the copy of an image.

        Raises:
            ImageError: It cannot be copied; the message says why.
            CaptionerError: The disk is full or gone.
        """
        path, again = self._claim(item)
        data = _read(item, path)
        if os.path.lexists(path):
            if again or self.mode == "resume":
                return
            if self.mode == "new":
                hint = "--resume keeps it, --overwrite replaces it"
                raise ImageError(f"a file of its name is there already ({hint})")
        data = embed_caption(data, caption.text)
        make_folder(os.path.dirname(path))
        write_atomically(path, data)

    def _claim(self, item: Item) -> tuple[str, bool]:
        """Return the path of an image's copy, and whether the same image was copied before.

        Raises:
            ImageError: Another image has the same name, or it cannot be the name of a file.
        """
        source = item.source
        if isinstance(source, bytes):
            name = item.name
            if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                name += next((_SIGNATURES[s] for s in _SIGNATURES if source.startswith(s)), "")
        else:
            name = os.path.abspath(_file_name(item))
        path = os.path.join(self.folder, self._paths.of(name))
        if any(len(os.fsencode(part)) > _LONGEST for part in path.split(os.sep)) or "\0" in path:
            raise ImageError("its name is none for a file")
        key = hash(os.path.normcase(path))
        again = key in self._taken
        if again and isinstance(source, bytes):
            raise ImageError("another photo has the same name")
        self._taken.add(key)
        return path, again


def embed_caption(data: bytes, text: str) -> bytes:
    """Return an image file with a caption in its metadata, replacing the one that it may have.

    JPEG, PNG and TIFF get XMP and IPTC, WebP has XMP alone.

    Args:
        data: The file.
        text: The caption.

    Raises:
        ImageError: Its format cannot carry a caption, or its metadata is damaged.
        ConfigError: pyexiv2 is not installed.
    """
    pyexiv2 = _import_pyexiv2()
    try:
        with contextlib.closing(pyexiv2.ImageData(data)) as image:
            modes = image.get_access_mode()
            if "write" not in (modes["xmp"] or ""):
                raise ImageError("its format cannot carry a caption")
            image.modify_xmp({"Xmp.dc.description": {'lang="x-default"': text}})
            if "write" in (modes["iptc"] or ""):
                _write_iptc(image, text)
            result: bytes = image.get_bytes()
            is_tiff = image.get_mime_type() == "image/tiff"
    except RuntimeError as error:
        raise ImageError(f"a caption cannot be written into it ({_one_line(error)})") from None
    if is_tiff and _count_pages(result) != _count_pages(data):  # Exiv2 reads four
        raise ImageError("it has too many pages")
    return result


def _write_iptc(image: Any, text: str) -> None:
    """Set the IPTC caption in UTF-8, converting other fields from Latin-1 if need be."""
    try:
        image.read_iptc()
    except UnicodeDecodeError:
        image.modify_iptc(image.read_iptc("latin-1"))
    image.modify_iptc({"Iptc.Envelope.CharacterSet": "\x1b%G", "Iptc.Application2.Caption": text})


def _count_pages(data: bytes) -> int:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return getattr(image, "n_frames", 1)


def _import_pyexiv2() -> Any:
    try:
        import pyexiv2
    except (ImportError, OSError):  # OSError: its library does not fit this system
        raise ConfigError(
            "--write-metadata needs the package pyexiv2: pip install 'captioner[metadata]'"
        ) from None
    pyexiv2.set_log_level(4)  # it writes remarks about odd metadata to standard error
    return pyexiv2


def _read(item: Item, copy: str) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: It has vanished since it was captioned, or the copy would replace it.
    """
    if isinstance(item.source, bytes):
        return item.source
    try:
        if os.path.lexists(copy) and os.path.samefile(copy, _file_name(item)):
            raise ImageError("the copy would replace the photo itself")
        with open(_file_name(item), "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"it cannot be read again ({error.strerror})") from None


def _file_name(item: Item) -> str:
    assert isinstance(item.source, (str, os.PathLike))  # sources give nothing else
    return os.fspath(item.source)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
