"""The public data sets: their archives, sizes and addresses, and `FileIndex` to find files on disk.

Sizes and checksums are those of the original files; one that is not known is None, never a guess.
Addresses may die: each can be replaced (`addresses`), and a file from elsewhere with the same
checksum is the same file.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import ConfigError, DataError

DOWNLOADS = "downloads"
"""Folder under the root for the archives, which are not needed once they are unpacked."""


@dataclass(frozen=True)
class Archive:
    """A zip file to download.

    Attributes:
        name: File name.
        url: Its original address.
        size: Bytes, if known exactly.
        digest: `md5:` or `sha256:` and the hexadecimal checksum, if known.
        pattern: The files that it unpacks to, such as `folder/*.jpg`.
        count: How many these are; with that many on disk it counts as unpacked.
        into: Folder under the root to unpack into.
    """

    name: str
    url: str
    size: int | None
    digest: str | None
    pattern: str
    count: int
    into: str = ""

    @property
    def key(self) -> str:
        """Return its name for `--url`: the file name without its ending."""
        return Path(self.name).stem

    @property
    def variable(self) -> str:
        """Return the environment variable that replaces its address."""
        return "CAPTIONER_URL_" + re.sub(r"\W", "_", self.key).upper()

    def describe(self) -> str:
        """Return size and checksum for a person who gets the file elsewhere."""
        size = "size not known" if self.size is None else f"{self.size:,} bytes"
        return f"{size}, {self.digest.replace(':', ' ') if self.digest else 'no known checksum'}"


_COCO = "http://images.cocodataset.org"  # its https has a certificate for another name
_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"

KARPATHY = Archive(
    name="caption_datasets.zip",
    url="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    size=36_745_453,
    digest="sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    pattern="dataset_*.json",
    count=3,
    into="karpathy",
)
"""Captions and splits of COCO, Flickr8k and Flickr30k by Karpathy and Fei-Fei (2015)."""

ARCHIVES: Mapping[str, tuple[Archive, ...]] = {
    "coco2014": (
        Archive(
            "annotations_trainval2014.zip",
            f"{_COCO}/annotations/annotations_trainval2014.zip",
            252_872_794,
            "md5:0a379cfc70b0e71301e0f377548639bd",
            "annotations/captions_*2014.json",
            2,
        ),
        Archive(
            "val2014.zip",
            f"{_COCO}/zips/val2014.zip",
            6_645_013_297,
            "md5:a3d79f5ed8d289b7a7554ce06a5782b3",
            "val2014/*.jpg",
            40_504,
        ),
        Archive(
            "train2014.zip",
            f"{_COCO}/zips/train2014.zip",
            13_510_573_713,
            "md5:0da8c0bd3d6becc4dcb32757491aca88",
            "train2014/*.jpg",
            82_783,
        ),
    ),
    "coco2017": (
        Archive(
            "annotations_trainval2017.zip",
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            252_907_541,
            "md5:f4bbac642086de4f52a3fdda2de5fa2c",
            "annotations/captions_*2017.json",
            2,
        ),
        Archive(
            "val2017.zip",
            f"{_COCO}/zips/val2017.zip",
            815_585_330,
            "md5:442b8da7639aecaf257c1dceb8ba8c80",
            "val2017/*.jpg",
            5_000,
        ),
        Archive(
            "train2017.zip",
            f"{_COCO}/zips/train2017.zip",
            19_336_861_798,
            "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
            "train2017/*.jpg",
            118_287,
        ),
    ),
    # The university gives both sets on request; Flickr8k has a mirror that many use.
    "flickr8k": (
        Archive(
            "Flickr8k_text.zip",
            f"{_MIRROR}/Flickr8k_text.zip",
            None,
            "md5:bf6c1abcb8e4a833b7f922104de18627",
            "Flickr*8k*.txt",
            4,
            into="Flickr8k_text",
        ),
        Archive(
            "Flickr8k_Dataset.zip",
            f"{_MIRROR}/Flickr8k_Dataset.zip",
            None,
            "md5:f18a1e2920de5bd84dae7cf08ec78978",
            "Flicker8k_Dataset/*.jpg",  # its own spelling
            8_091,
        ),
    ),
    "flickr30k": (KARPATHY,),
}
"""What each set is downloaded from, small files first."""

IMAGES_ON_REQUEST = (
    "the photos of Flickr30k are given on request, for research and teaching: ask at"
    " https://shannon.cs.illinois.edu/DenotationGraph/, unpack what you get anywhere"
)


def addresses(archives: Iterable[Archive], given: Iterable[str] = ()) -> dict[str, str]:
    """Return where to get each archive: `--url`, else the environment, else the original address.

    Args:
        archives: Those of the data set.
        given: `NAME=URL` with the archive's name, its ending left out or not.

    Returns:
        Archive name -> URL.

    Raises:
        ConfigError: No such archive, or no http or https URL.
    """
    archives = list(archives)
    urls = {item.name: os.environ.get(item.variable) or item.url for item in archives}
    keys = {key.lower(): item.name for item in archives for key in (item.key, item.name)}
    for text in given:
        key, _, url = text.partition("=")
        if key.lower() not in keys:
            names = ", ".join(item.key for item in archives)
            raise ConfigError(f"--url {text}: expected NAME=URL with NAME one of {names}")
        urls[keys[key.lower()]] = url
    for name, url in urls.items():
        if not url.lower().startswith(("http://", "https://")):
            raise ConfigError(
                f"{name}: {url!r} is no http or https address; use --from for files on disk"
            )
    return urls


class FileIndex:
    """The files of some folders and all their subfolders, by name.

    Hidden files and folders are left out. Links to folders are followed, each folder once.

    Args:
        folders: Where to look, those that matter most first; absent ones are skipped.

    Attributes:
        folders: Those that exist.

    Raises:
        DataError: None of them exists.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        given = list(folders)
        self.folders = [folder for folder in given if folder.is_dir()]
        if not self.folders:
            raise DataError(f"no folder {', '.join(str(folder) for folder in given)}")
        self._by_name: dict[str, list[str]] = {}
        visited: set[tuple[int, int]] = set()
        for folder in self.folders:
            for place, folders_in_it, names in os.walk(folder, followlinks=True):
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in visited:
                    folders_in_it.clear()
                    continue
                visited.add((status.st_dev, status.st_ino))
                folders_in_it[:] = sorted(n for n in folders_in_it if not n.startswith("."))
                for name in names:
                    if not name.startswith("."):
                        self._by_name.setdefault(name, []).append(os.path.join(place, name))

    def find(self, *names: str) -> str | None:
        """Return the path of the first of several names that exists.

        Args:
            names: File names; folders before the name (`val2014/a.jpg`) are preferred where
                several files have it, and otherwise do not matter.
        """
        for name in names:
            paths = self._by_name.get(os.path.basename(name))
            if paths:
                tail = os.sep + os.path.normpath(name)
                return next((path for path in paths if path.endswith(tail)), paths[0])
        return None

    def match(self, pattern: str) -> list[str]:
        """Return the paths that end in a pattern such as `train2014/*.jpg`, sorted."""
        whole = re.compile(fnmatch.translate("*/" + pattern))
        last = re.compile(fnmatch.translate(pattern.rpartition("/")[2]))
        return sorted(
            path
            for name, paths in self._by_name.items()
            if last.match(name)
            for path in paths
            if whole.match(path.replace(os.sep, "/"))
        )


def relative_to(path: str, root: Path) -> str:
    """Return a path as a caption file in `root` names it: relative below `root`, else absolute."""
    absolute, base = os.path.abspath(path), os.path.abspath(root)
    if absolute.startswith(os.path.join(base, "")):
        return os.path.relpath(absolute, base).replace(os.sep, "/")
    return absolute
