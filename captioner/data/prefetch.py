"""Batches that are on the GPU before the training asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from captioner.data.caption_batch import CaptionBatch


def copied_ahead(batches: Iterable[CaptionBatch], device: torch.device) -> Iterator[CaptionBatch]:
    """Yield batches, copied to a GPU one batch ahead, while the one before is computed.

    From page-locked memory the copy runs on a stream of its own, beside the computation. On other
    devices the batches are passed on as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
    waiting: tuple[CaptionBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if waiting is not None:
            yield _taken_over(*waiting)
        waiting = copied
    if waiting is not None:
        yield _taken_over(*waiting)


def _taken_over(batch: CaptionBatch, copied: torch.cuda.Event) -> CaptionBatch:
    """Let the current stream wait for a batch, and keep its memory until that stream is done."""
    stream = torch.cuda.current_stream(batch.indices.device)
    stream.wait_event(copied)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    return batch.map(keep)
