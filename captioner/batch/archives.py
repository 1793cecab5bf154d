"""Photos in ``.tar`` archives, plain or compressed, as WebDataset shards have them."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator

from captioner.batch.item import Item
from captioner.image.io import IMAGE_SUFFIXES

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_MAX_BYTES = 256 * 1024**2
"""Largest member that is read: several are held in memory at once."""
_MAX_HEADER = 1024**2
"""Longest name or extended attribute, which `tarfile` reads before it gives the member."""
_READ_WHOLE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
    """Headers without what `tarfile` forgives: it takes a damaged one for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and header.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a name of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None


def read_archive(path: str) -> Iterator[Item]:
    """The pictures of an archive, read once from front to back.

    A picture is called ``shard.tar/member.jpg``. Other members, such as WebDataset's ``.json``, are
    left out. A damaged archive gives its pictures up to the damage, then an item with the error.

    Args:
        path: The archive.
    """
    found = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=_Header) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                folder_and_name = member.name.rsplit("/", 1)
                if not member.isfile() or folder_and_name[-1].startswith("."):
                    continue
                if os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                name = f"{path}/{member.name}"
                if member.size > _MAX_BYTES:
                    yield Item(name, error=f"too large: {member.size:,} bytes in the archive")
                    continue
                file = archive.extractfile(member)
                assert file is not None  # it is for regular files
                data = file.read()  # all of it, or an error
                found += 1
                yield Item(name, data)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            yield Item(path, error=error.strerror)
        else:
            yield Item(path, error=f"damaged archive after {found:,} photos ({error})")
