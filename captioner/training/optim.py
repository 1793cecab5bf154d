"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from captioner.config import OptimConfig
from captioner.models.caption_model import CaptionModel


def build_optimizer(model: CaptionModel, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW with a rate of its own for the trunk; biases, norms and embeddings do not decay.

    The groups of the trunk come last, so that the first group's rate is `config.learning_rate`.
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
    """Build a schedule: linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = min(config.warmup, steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class AveragedWeights(AveragedModel):
    """Exponential moving average of a model's weights, warmed up over the first steps.

    `module` is a copy of the model that holds the average. Call `update_parameters` after each
    optimizer step.

    Args:
        model: The model that trains.
        decay: Share of the old average kept at each step; 0 follows the weights exactly.
    """

    n_averaged: Tensor
    module: CaptionModel

    def __init__(self, model: nn.Module, decay: float):
        def average(averaged: Any, live: Any, _count: Any) -> None:
            steps = int(self.n_averaged)  # on the CPU: reading it waits for no GPU
            weight = 1 - min(decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(averaged, live, weight)

        super().__init__(model, multi_avg_fn=average)
        self.module.eval()
        self.n_averaged += 1  # the initial weights, which the first update would replace otherwise

    def resume_state(self) -> dict[str, Any]:
        """Return what exact resume needs beside the model's own state."""
        weights = self.module.named_parameters()
        trained = {name: weight.detach() for name, weight in weights if weight.requires_grad}
        return {"steps": int(self.n_averaged) - 1, "average": trained}

    def load_resume_state(self, state: dict[str, Any], model: dict[str, Tensor]) -> None:
        """Restore `resume_state`; weights that do not train are taken from the model's state."""
        self.n_averaged.fill_(state["steps"] + 1)
        self.module.load_state_dict({**model, **state["average"]})
