"""Copies of the photos with the caption in their metadata, where photo managers look for it.

The caption becomes the XMP ``dc:description`` and, where the format has it, the IPTC
``Caption-Abstract``; what else the metadata holds stays. Pixels are not encoded anew. The work is
done by Exiv2 through pyexiv2, which is under the GPL and therefore an extra.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from captioner.batch.item import Item
from captioner.batch.journal import Mode
from captioner.errors import CaptionerError, ConfigError, ImageError
from captioner.image.io import IMAGE_SUFFIXES
from captioner.utils.files import write_atomically

if TYPE_CHECKING:
    from captioner.api import Caption

_LONGEST = 255  # bytes of a file name
_SIGNATURES = {  # what files of the formats that carry a caption begin with
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


class MetadataFolder:
    """A folder of captioned copies, with the sub-folders that the photos lie in.

    Paths are kept from the folder on that all sources have in common: photos of ``trip/`` become
    ``FOLDER/a.jpg`` and ``FOLDER/day1/b.jpg``. Photos from elsewhere, such as a list's absolute
    paths, keep their whole path. Pictures in archives and tables are copied out of them.

    Args:
        folder: Made if it is absent.
        sources: The paths on the command line.
        mode: What to do with a copy that is there: ``new`` leaves it and reports the photo,
            ``resume`` takes it for done, ``overwrite`` replaces it.
        image_root: What lists' relative names are relative to.
        recursive: Whether sub-folders of the sources are searched.

    Raises:
        ConfigError: pyexiv2 is not installed, or the folder is that of the photos.
        CaptionerError: The folder cannot be made.
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
        places = dict.fromkeys(_place(source, image_root) for source in sources)
        self._base = ""
        with contextlib.suppress(ValueError):  # on Windows: on different drives
            self._base = os.path.commonpath([os.path.abspath(place) for place in places])
        real = os.path.realpath(folder)
        roots = [os.path.realpath(place) for place in (self._base, *places) if place]
        walked = [os.path.realpath(source) for source in sources if os.path.isdir(source)]
        if real in roots or (recursive and any(_is_within(real, root) for root in walked)):
            raise ConfigError(f"--write-metadata {folder} is where the photos are: choose another")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"cannot make the folder {folder}: {error.strerror}") from None

    def has(self, item: Item) -> bool:
        """Whether there is a copy of a photo that an earlier run captioned.

        Asked in the place of `write`, in the order of the items.
        """
        with contextlib.suppress(ImageError):
            path, _ = self._claim(item)
            return os.path.exists(path)
        return False

    def write(self, item: Item, caption: Caption) -> None:
        """Write the copy of a photo.

        Raises:
            ImageError: There can be none; the message says why.
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
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"cannot make the folder {folder}: {error.strerror}") from None
        write_atomically(path, data)

    def _claim(self, item: Item) -> tuple[str, bool]:
        """The path of an item's copy, and whether this very photo has had it before.

        Raises:
            ImageError: The name is taken by another photo, or is none for a file.
        """
        source = item.source
        if isinstance(source, bytes):
            name = item.name
            if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                name += next((_SIGNATURES[s] for s in _SIGNATURES if source.startswith(s)), "")
        else:
            name = os.path.abspath(_file_name(item))
        path = os.path.join(self.folder, self._relative(name))
        if any(len(os.fsencode(part)) > _LONGEST for part in path.split(os.sep)) or "\0" in path:
            raise ImageError("its name is none for a file")
        key = hash(os.path.normcase(path))
        again = key in self._taken
        if again and isinstance(source, bytes):
            raise ImageError("another photo has the same name")
        self._taken.add(key)
        return path, again

    def _relative(self, name: str) -> str:
        """Where in the folder a photo belongs; never outside, whatever ``..`` there is."""
        if self._base and _is_within(os.path.abspath(name), self._base):
            return os.path.relpath(os.path.abspath(name), self._base)
        # As if the name began at the root, where ".." leads nowhere.
        rooted = os.path.normpath(os.sep + os.path.splitdrive(name)[1])
        return rooted.lstrip(os.sep)


def embed_caption(data: bytes, text: str) -> bytes:
    """A picture file with a caption in its metadata, in the place of the one that it may have.

    JPEG, PNG and TIFF get XMP and IPTC, WebP has XMP alone.

    Args:
        data: The file.
        text: The caption.

    Raises:
        ImageError: Its format cannot carry one, or its metadata is damaged.
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
    if is_tiff and _count_pages(result) != _count_pages(data):  # Exiv2 knows of four
        raise ImageError("it has too many pages")
    return result


def _write_iptc(image: Any, text: str) -> None:
    """Set the IPTC caption, in UTF-8; other fields that are in Latin-1 are translated."""
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
    pyexiv2.set_log_level(4)  # its remarks about odd metadata go to standard error
    return pyexiv2


def _place(source: str, image_root: str | None) -> str:
    """The folder that a source's photos are in, as far as the command line tells."""
    if source == "-":
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


def _is_within(path: str, folder: str) -> bool:
    """Whether an absolute path is in a folder, or the folder itself."""
    with contextlib.suppress(ValueError):  # on Windows: on different drives
        return os.path.commonpath([path, folder]) == folder
    return False


def _read(item: Item, copy: str) -> bytes:
    """The file of a photo.

    Raises:
        ImageError: It has vanished since it was captioned, or lies where its copy would.
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
