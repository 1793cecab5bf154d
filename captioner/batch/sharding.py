"""One run on several processes: which process captions which images, and how the run ends.

Images are assigned by whole batches: batch b of the stream belongs to shard b mod N. Every shard
lists all images but opens only its own, and each batch has the same images as in a single process,
so the caption of an image is the same to the last digit however many shards there are.

Under `torchrun` the processes are connected (`RankGroup`), and rank 0 merges the results. Shards
that are started one by one, such as the tasks of an array job, need not run at the same time;
`captioner merge` merges their results (`shard_files.merge_shards`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from captioner.batch.item import Item
from captioner.batch.runner import Summary
from captioner.errors import ConfigError
from captioner.utils.device import torchrun_process

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """The share of a run that one process captions.

    Attributes:
        index: Its number, from 0.
        count: Number of shards.
        launched: Whether a launcher such as `torchrun` started all of them together.
    """

    index: int
    count: int
    launched: bool = False

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def find_shard(option: str | None) -> Shard | None:
    """Return the shard of this process, None if it captions everything.

    Args:
        option: `--shard I/N`; None reads what `torchrun` tells its processes: `RANK` and
            `WORLD_SIZE` in the environment.

    Raises:
        ConfigError: The option is malformed, or `torchrun` has assigned a shard already.
    """
    process = torchrun_process()
    if option is None:
        if process.world_size == 1:
            return None
        return Shard(process.rank, process.world_size, launched=True)
    if process.world_size > 1:
        raise ConfigError("torchrun deals out the shards itself: leave --shard out")
    parts = re.fullmatch(r"(\d+)/(\d+)", option)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise ConfigError(f"--shard {option}: should be I/N with I from 0 to N - 1, such as 0/4")
    return Shard(int(parts[1]), int(parts[2]))


def is_restarted() -> bool:
    """Return whether `torchrun --max-restarts` started this process to replace a dead one."""
    return torchrun_process().restarts > 0


class ShardAssignment:
    """Assigns the images of a run to its shards, batch by batch.

    Args:
        shard: The shard of this process.
        batch_size: Images per batch.

    Attributes:
        total: Images seen so far, those of other shards included.
        observe: Called for each image of the run that its source can provide.
    """

    def __init__(self, shard: Shard, batch_size: int):
        self.shard = shard
        self.batch_size = batch_size
        self.total = 0
        self.observe: Callable[[Item], object] | None = None

    def items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the images of this shard, each with its index in the run.

        Args:
            items: All images of the run.
        """
        for index, item in enumerate(items):
            self.total = index + 1
            if self.observe is not None and item.error is None:
                self.observe(item)
            if index // self.batch_size % self.shard.count == self.shard.index:
                yield replace(item, index=index)

    def share(self, total: int | None) -> int | None:
        """Return how many of `total` images are this shard's."""
        if total is None:
            return None
        rounds, rest = divmod(total, self.batch_size * self.shard.count)
        own = min(max(rest - self.shard.index * self.batch_size, 0), self.batch_size)
        return rounds * self.batch_size + own


class RankGroup:
    """The processes that a launcher started together.

    They report to rank 0 through the launcher's key-value store, a TCP connection that works
    without a process group, on CPUs and GPUs alike. Files on the shared disk would not be safe:
    those of an earlier run that is being overwritten look finished too. A process that dies reports
    nothing; the launcher notices and ends the others, so nobody waits and nothing is merged.

    Args:
        shard: The shard of this process.

    Raises:
        ConfigError: The other processes cannot be reached.
    """

    def __init__(self, shard: Shard):
        from torch.distributed import rendezvous

        self.shard = shard
        try:
            self._store: Store = next(iter(rendezvous("env://")))[0]
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"RANK is set but the other processes cannot be reached ({reason}): "
                "start them with torchrun, or use --shard I/N"
            ) from None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which merges the results and prints the summary."""
        return self.shard.index == 0

    def report(self, summary: Summary) -> None:
        """Tell rank 0 that this shard is done."""
        self._store.set(self._key(self.shard.index), json.dumps(vars(summary)))

    def gather(self) -> Summary:
        """Wait until all shards are done and return the sum of their summaries."""
        return Summary.of_shards(self._wait())

    def _wait(self) -> Iterator[Summary]:
        for index in range(self.shard.count):
            while not self._store.check([self._key(index)]):
                time.sleep(_POLL_SECONDS)
            yield Summary(**json.loads(self._store.get(self._key(index))))

    def _key(self, index: int) -> str:
        return f"captioner/shard/{index}"
