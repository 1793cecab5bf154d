"""One training step: forward, backward, clipping, optimizer, averaged weights.

On a GPU nothing is read back: a step returns its values as a tensor, and the trainer reads those of
many steps at once. Where it can, it runs as a CUDA graph (`captioner.training.graphs`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from captioner.config import Config
from captioner.data.caption_batch import CaptionBatch
from captioner.errors import CaptionerError
from captioner.training.distributed import replicate, sum_over_ranks, world_size
from captioner.training.graphs import StepGraphs
from captioner.training.losses import BatchCounts
from captioner.training.objective import Objective
from captioner.training.optim import AveragedWeights, make_capturable
from captioner.utils.device import autocast

logger = logging.getLogger(__name__)


class TrainStep:
    """Runs training steps.

    Args:
        objective: The model with its loss, on `device`.
        optimizer: Of the model.
        schedule: Of the optimizer.
        average: Of the model's weights.
        config: The recipe.
        device: Where to compute.
        static: Run batches of few shapes from buffers of their own, as CUDA graphs on a GPU;
            None does it where it can be done.

    Attributes:
        names: Of the values that a step returns, known after the first one: `loss`, its parts and
            `gradient_norm`.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        average: AveragedWeights,
        config: Config,
        device: torch.device,
        *,
        static: bool | None = None,
    ):
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.average = average
        self.config = config
        self.device = device
        self.names: list[str] = []
        self._weights = [p for p in objective.model.parameters() if p.requires_grad]
        reason = why_not_captured(config, device)
        if static is None:
            static = reason is None
        # A GPU must not be asked for lengths; hard attention needs them.
        hard = config.model.attention.mode == "hard"
        objective.static = static or (device.type == "cuda" and not hard)
        self._replicated = replicate(objective)
        self._graphs: StepGraphs | None = None
        if static:
            self._graphs = StepGraphs(self._compute, device)
            make_capturable(optimizer, device)
        if device.type == "cuda":
            how = "as CUDA graphs" if static else f"operation by operation: {reason}"
            logger.info("training steps run %s", how)

    def __call__(self, batch: CaptionBatch, step: int, images: int) -> Tensor:
        """Run a step.

        Args:
            batch: Of this process.
            step: Number of steps done.
            images: In the global batch.

        Returns:
            The values that `names` names, as means over the global batch: (N,) on the device.

        Raises:
            CaptionerError: A value is not finite; raised here on a CPU only, before the update. On
                a GPU, whoever reads the values calls `check_finite`.
        """
        self.average.advance()
        batch = batch.to(self.device)
        if self._graphs is None:
            # Equally many parts in every process, even if one has an image less: they run together.
            parts = min(self.config.optim.accumulate, images // world_size())
            values = self._compute(batch, step, parts)
        else:
            with autocast(self.device, self.config.optim.precision):
                batch = self.objective.prepare(batch, step)
            values = self._graphs(batch, step, min(self.config.optim.accumulate, images))
        self.schedule.step()
        return values

    def _compute(self, batch: CaptionBatch, step: int | Tensor, parts: int) -> Tensor:
        """Compute the gradients in parts, and update the weights; a CUDA graph may hold it."""
        counted = sum_over_ranks(self.objective.count(batch))
        # At least 1: a batch may have no caption with words.
        counts = BatchCounts(*(counted.clamp(min=1) / world_size()).unbind())
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        pieces = batch.split(parts)
        for number, piece in enumerate(pieces):
            synchronise = number + 1 == len(pieces)
            with contextlib.ExitStack() as stack:
                if isinstance(self._replicated, DistributedDataParallel) and not synchronise:
                    stack.enter_context(self._replicated.no_sync())
                # In a graph this is the outermost autocast: bf16 copies of weights, which it keeps
                # until its end, are made within the graph, and none comes from outside.
                with autocast(self.device, self.config.optim.precision):
                    losses = self._replicated(piece, counts, step)
                losses.total.backward()
            for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
                total[name] = total[name] + value if name in total else value
        means = sum_over_ranks(torch.stack(list(total.values())).float()) / world_size()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, self.config.optim.clip or math.inf)
        values = torch.cat((means, norm.detach().float()[None]))
        self.names = [*total, "gradient_norm"]
        if self.device.type == "cpu":  # nothing is waited for
            self._check(values, step)
        self.optimizer.step()
        self.average.update(self.objective.model)
        return values

    @property
    def captured(self) -> int:
        """Return how many CUDA graphs there are."""
        return self._graphs.captured if self._graphs is not None else 0

    def _check(self, values: Tensor, step: int | Tensor) -> None:
        """Read the values of a step, and refuse those that are not finite."""
        check_finite(dict(zip(self.names, values.tolist(), strict=True)), int(step))


def why_not_captured(config: Config, device: torch.device) -> str | None:
    """Return why steps cannot run as CUDA graphs, in words; None if they can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not config.optim.cuda_graphs:
        return "optim.cuda_graphs is false"
    if world_size() > 1:
        return "several processes train together"
    if config.model.attention.mode == "hard":
        return "model.attention.mode is hard"
    return None


def check_finite(values: Mapping[str, float], step: int) -> None:
    """Refuse a loss or a norm that is not finite.

    Raises:
        CaptionerError: Names the value and the step.
    """
    for name, words in (("loss", "loss"), ("gradient_norm", "gradient's norm")):
        if not math.isfinite(values[name]):
            raise CaptionerError(
                f"the {words} is {values[name]} at step {step}: training stopped; "
                "lower optim.learning_rate or optim.clip, or set optim.precision=fp32"
            )
