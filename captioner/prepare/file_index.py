"""Files found by their names, whatever folders they lie in."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from captioner.errors import DataError


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
        """The path of the first of several names that is there.

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
        """Sorted paths that end in a pattern such as `train2014/*.jpg`."""
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
    """A path as a caption file in `root` names it: relative if it is below, else absolute."""
    absolute, base = os.path.abspath(path), os.path.abspath(root)
    if absolute.startswith(os.path.join(base, "")):
        return os.path.relpath(absolute, base).replace(os.sep, "/")
    return absolute
