"""Sample batches: length-aware, seeded, resumable, split over processes.

A batch is a list of (epoch, index) keys, so that persistent workers know the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from captioner.errors import DataError

Key = tuple[int, int]
"""(epoch, index of the image), the dataset's key of an item."""

_POOL = 64  # batches sorted together: enough to save padding, few enough to stay random


class LengthAwareSampler(Sampler[list[Key]]):
    """Batches of images whose captions have similar lengths, to save padding.

    The images are shuffled, sorted by length within pools of many batches, cut into batches, and
    the batches are shuffled. Each epoch visits each image once; batch sizes differ by one at most
    (there is no tiny last batch). With several processes, global batches of
    `batch_size * world_size` images are built first and then split over the ranks: N processes see
    the same global batches as a single one with N times the batch size.

    Iteration is a pure function of (seed, epoch, batch). It starts at `batch`, the number of
    batches of this epoch that the trainer has reported by `advance()`; batches that workers have
    prefetched do not count.

    Args:
        lengths: One length per image, for example `CaptionDataset.lengths`.
        batch_size: Images per batch and process.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        DataError: There are too few images for every process to get one in each batch.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        self.lengths = np.asarray(lengths)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.global_batch_size = batch_size * world_size
        self.epoch = 0
        self.batch = 0
        count = len(self.lengths)
        if count == 0 or count // len(self) < world_size:
            raise DataError(
                f"{count} photos cannot be cut into batches with at least one photo for each of"
                f" {world_size} process(es): use more photos, fewer processes or a larger batch"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same for all processes."""
        return math.ceil(len(self.lengths) / self.global_batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        for batch in self.global_batches(epoch)[self.batch :]:
            # Every world_size-th image: the images of a batch are sorted by length.
            yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """Return all batches of an epoch as arrays of indices, before the split over ranks."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths))
        # As even as possible: batch sizes differ by one at most.
        ends = np.cumsum([len(part) for part in np.array_split(order, len(self))])
        for pool in np.split(order, ends[_POOL - 1 :: _POOL]):
            # A view into order; stable, so that images of equal length stay shuffled.
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]
        batches = np.split(order, ends[:-1])
        return [batches[place] for place in generator.permutation(len(batches))]

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; in the current epoch, keep the position."""
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def advance(self, batches: int = 1) -> None:
        """Record that the trainer has consumed batches of this epoch."""
        self.batch += batches

    def state_dict(self) -> dict[str, int]:
        """Return the position (the same for all ranks) and the settings it is valid for."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "seed": self.seed,
            "photos": len(self.lengths),
            "global_batch_size": self.global_batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position with exactly the remaining batches.

        Raises:
            DataError: The state belongs to other data, another seed or another batch size.
        """
        for name, here in self.state_dict().items():
            if name not in ("epoch", "batch") and state[name] != here:
                raise DataError(
                    f"cannot resume: {name} was {state[name]} and is now {here};"
                    " resume with the data and settings of the interrupted training"
                )
        self.epoch, self.batch = state["epoch"], state["batch"]
