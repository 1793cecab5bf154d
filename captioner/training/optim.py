"""Optimiser, learning-rate schedule and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from captioner.config import OptimConfig
from captioner.models.caption_model import CaptionModel


def build_optimizer(model: CaptionModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with the encoder's own rate; biases, norms and embeddings do not decay.

    The groups of the trunk come last: the first one's rate is ``config.learning_rate``.
    """
    trunk = {id(p) for p in model.encoder.backbone.parameters()}
    embedding = id(model.decoder.embed.weight)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in sorted(model.parameters(), key=lambda p: id(p) in trunk):
        if not parameter.requires_grad:
            continue
        rate = config.encoder_learning_rate if id(parameter) in trunk else config.learning_rate
        decays = parameter.ndim > 1 and id(parameter) != embedding
        key = (rate, config.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": wd} for (rate, wd), p in groups.items()],
        betas=(0.9, 0.98),
        eps=1e-8,
        fused=True,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = min(config.warmup, steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class AveragedWeights:
    """Exponential moving average of the weights that train, warmed up over the first steps.

    Args:
        model: Whose weights.
        decay: Share of the old average kept at each step; 0 follows the weights exactly.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.live = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; call after each optimiser step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.live.values()], 1 - decay
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the model's place while the block runs."""
        kept = {name: parameter.data for name, parameter in self.live.items()}
        try:
            for name, parameter in self.live.items():
                parameter.data = self.average[name]
            yield
        finally:
            for name, parameter in self.live.items():
                parameter.data = kept[name]

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """For exact resume."""
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict[str, int | dict[str, Tensor]]) -> None:
        """Restore what :meth:`state_dict` gave."""
        steps, average = state["steps"], state["average"]
        assert isinstance(steps, int)
        assert isinstance(average, dict)
        self.steps = steps
        for name, value in average.items():
            self.average[name].copy_(value)
