"""Photos to measure with: given ones, or made-up JPEG files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from captioner.image.io import IMAGE_SUFFIXES


@contextmanager
def photo_files(
    given: list[Path], count: int, size: tuple[int, int] = (640, 480)
) -> Iterator[list[Path]]:
    """``count`` photo files: the given ones over and over, or made-up ones of this size."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for path in given:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            found += [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
        if given and not found:
            raise SystemExit(f"no photos in {', '.join(map(str, given))}")
        if not given:
            rng = np.random.default_rng(0)
            for n in range(min(count, 64)):
                found.append(Path(folder, f"{n}.jpg"))
                found[-1].write_bytes(made_up_photo(rng, size))
        yield [found[n % len(found)] for n in range(count)]


def made_up_photo(
    rng: np.random.Generator, size: tuple[int, int] = (640, 480), progressive: bool = False
) -> bytes:
    """A JPEG of coloured blobs with some grain: 0.3 bytes a pixel, as a camera's would have."""
    blobs = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    pixels = np.asarray(blobs.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 6, (size[1], size[0], 1)).astype(np.float32)
    image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, progressive=progressive)
    return stream.getvalue()
