"""One run on several processes: which of them does which photos, and how they meet at the end.

Photos are dealt by whole batches: batch b of the stream goes to shard b mod N. Every shard lists
all the photos but opens only its own, and each batch has the very photos that it would have in a
single process, so a photo's caption is the same to the last digit however many shards there are.

Under ``torchrun`` the processes know of each other (`Team`), and rank 0 puts the results together;
shards started one by one, such as the tasks of an array job, need never run at the same time, and
``captioner merge`` does it (`parts.merge_parts`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from captioner.batch.item import Item
from captioner.batch.runner import Summary
from captioner.batch.sidecars import SidecarSink
from captioner.batch.strips import StripFolder
from captioner.errors import ConfigError
from captioner.utils.device import torchrun_process

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """A share of a run.

    Attributes:
        index: From 0.
        count: Of all shards.
        launched: Whether a launcher such as ``torchrun`` started all of them together.
    """

    index: int
    count: int
    launched: bool = False

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def find_shard(option: str | None) -> Shard | None:
    """The shard of this process, None if it is to caption everything.

    Args:
        option: What ``--shard`` says, ``I/N``; None looks for what ``torchrun`` tells its
            processes: ``RANK`` and ``WORLD_SIZE`` in the environment.

    Raises:
        ConfigError: The option makes no sense, here or at all.
    """
    process = torchrun_process()
    count = process.world_size
    if option is None:
        return Shard(process.rank, count, launched=True) if count > 1 else None
    if count > 1:
        raise ConfigError("torchrun deals out the shards itself: leave --shard out")
    parts = re.fullmatch(r"(\d+)/(\d+)", option)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise ConfigError(f"--shard {option}: should be I/N with I from 0 to N - 1, such as 0/4")
    return Shard(int(parts[1]), int(parts[2]))


def is_restarted() -> bool:
    """Whether ``torchrun --max-restarts`` started this process in place of one that died."""
    return torchrun_process().restarts > 0


class Deal:
    """Deals the photos of a run to its shards, batch by batch.

    Args:
        shard: Of this process.
        batch_size: Photos that a batch has.
    """

    def __init__(self, shard: Shard, batch_size: int):
        self.shard = shard
        self.batch_size = batch_size
        self.total = 0
        """Photos seen so far, those of other shards included."""

    def items(
        self,
        items: Iterable[Item],
        *,
        strips: StripFolder | None = None,
        sidecars: SidecarSink | None = None,
    ) -> Iterator[Item]:
        """The photos of this shard, each with its index in the run.

        Args:
            items: Of the whole run.
            strips: Hears of all photos, so that the shards agree on names.
            sidecars: Hears of the others' photos, so that no two have one sidecar.
        """
        for index, item in enumerate(items):
            self.total = index + 1
            item = replace(item, index=index)
            own = index // self.batch_size % self.shard.count == self.shard.index
            if strips is not None:
                strips.announce(item, own=own)
            if own:
                yield item
            elif sidecars is not None:
                sidecars.claim(item)

    def share(self, total: int | None) -> int | None:
        """How many of so many photos are this shard's."""
        if total is None:
            return None
        rounds, rest = divmod(total, self.batch_size * self.shard.count)
        own = min(max(rest - self.shard.index * self.batch_size, 0), self.batch_size)
        return rounds * self.batch_size + own


class Team:
    """The processes that a launcher started together.

    They tell rank 0 that they are done through the launcher's key-value store, a TCP connection
    that works without a process group, on CPUs and GPUs alike. Files on the shared disk could not
    say so safely: those of an earlier run that is being overwritten look just as finished. A
    process that dies says nothing; the launcher notices and ends the others, so nobody waits for
    it, and nothing is merged.

    Args:
        shard: Of this process.

    Raises:
        ConfigError: The others cannot be reached.
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
    def leads(self) -> bool:
        """Whether this is rank 0, which speaks for all."""
        return self.shard.index == 0

    def report(self, summary: Summary) -> None:
        """Tell rank 0 that this shard is done."""
        self._store.set(self._key(self.shard.index), json.dumps(vars(summary)))

    def gather(self) -> Summary:
        """Wait until all shards are done: what they did together."""
        return Summary.of_shards(self._wait())

    def _wait(self) -> Iterator[Summary]:
        for index in range(self.shard.count):
            while not self._store.check([self._key(index)]):
                time.sleep(_POLL_SECONDS)
            yield Summary(**json.loads(self._store.get(self._key(index))))

    def _key(self, index: int) -> str:
        return f"captioner/shard/{index}"
