"""A quick stand-in for a captioner whose scores depend on the batch, and images for it."""

import os
from itertools import islice

import numpy as np
from PIL import Image

from captioner.api import Caption, Failure
from captioner.batch.runner import run
from captioner.batch.sources import open_sources
from captioner.batch.writers import open_writer
from captioner.errors import ImageError
from captioner.image import io as images


class FakeCaptioner:
    """Captions depend on the image, scores also on the other images of the batch."""

    backends = ()
    batch_size = 32

    def __init__(self, stop_after=None, on_batch=None):
        self.read = 0
        self.stop_after = stop_after
        self.on_batch = on_batch

    def stream(self, sources, *, batch_size=32, workers=None, **search):
        sources = iter(sources)
        while batch := list(islice(sources, batch_size)):
            if self.on_batch:
                self.on_batch()
            self.read += len(batch)
            together = float(sum(sum(os.fsencode(str(source))) for source in batch))
            for source in batch:
                if self.stop_after == 0:
                    raise KeyboardInterrupt
                if self.stop_after is not None:
                    self.stop_after -= 1
                try:
                    images.open_image(source)
                except ImageError as error:
                    yield Failure(source, str(error))
                else:
                    yield self.caption(source, together)

    def caption(self, source, score):
        words = ["a", "photo"]
        return Caption(
            text=" ".join(words),
            words=words,
            log_probs=[-0.5, -0.25, -1.0],
            score=score,
            finished=True,
            attention=np.full((2, 2, 2), 0.25, np.float32),
            source=source,
        )


def make_photos(folder):
    """Write seven files, the third of which is no image."""
    for number in range(7):
        save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"nonsense")
    return folder


def save(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), colour).save(path)
    return path


def names(*paths, **options):
    return [item.name for item in open_sources(map(str, paths), **options)]


def caption_to(output, paths, *, mode="new", form=None, captioner=None, batch_size=3, **options):
    """Do what the command does, without a model."""
    writer = open_writer(str(output), form, mode=mode)
    items = open_sources(map(str, paths))
    return run(captioner or FakeCaptioner(), items, writer, batch_size=batch_size, **options)
