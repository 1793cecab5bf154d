"""Optimizer, learning-rate schedule and averaged weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

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


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimizer's steps run in a CUDA graph: the rates become tensors, filled in place."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
        group["capturable"] = device.type == "cuda"


def plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's or a schedule's state with rates as numbers, for the training state.

    So a training that ran as CUDA graphs can go on without them, and the other way round.
    """
    state = dict(state)
    if "param_groups" in state:
        state["param_groups"] = [
            {**group, "lr": float(group["lr"]), "capturable": False}
            for group in state["param_groups"]
        ]
    if "_last_lr" in state:
        state["_last_lr"] = [float(rate) for rate in state["_last_lr"]]
    return state


class AveragedWeights(nn.Module):
    """Exponential moving average of a model's weights, warmed up over the first steps.

    `module` is a copy of the model that holds the average. Call `advance` and `update` for each
    step of the optimizer: what `update` does is the same every time, so a CUDA graph may hold it.

    Args:
        model: The model that trains.
        decay: Share of the old average kept at each step; 0 follows the weights exactly.
    """

    module: CaptionModel

    def __init__(self, model: CaptionModel, decay: float):
        super().__init__()
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(model).eval()
        weights = (p for p in model.parameters() if p.requires_grad)
        self._weight = torch.zeros((), device=next(weights).device)  # of the new weights

    def advance(self) -> None:
        """Count a step, and set the weight that `update` gives to the model of that step."""
        self.steps += 1
        self._weight.fill_(1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def update(self, model: CaptionModel) -> None:
        """Take the weights that train, and the statistics of BatchNorm that does, into account."""
        averaged: list[Tensor] = []
        live: list[Tensor] = []
        for mean, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            if weight.requires_grad:
                averaged.append(mean)
                live.append(weight)
        torch._foreach_lerp_(averaged, live, [self._weight] * len(live))
        for copied, module in zip(self.module.modules(), model.modules(), strict=True):
            if module.training:  # statistics are not averaged but taken over
                buffers = zip(copied.buffers(False), module.buffers(False), strict=True)
                for into, buffer in buffers:
                    into.copy_(buffer)

    def resume_state(self) -> dict[str, Any]:
        """Return what exact resume needs beside the model's own state."""
        weights = self.module.named_parameters()
        trained = {name: weight.detach() for name, weight in weights if weight.requires_grad}
        return {"steps": self.steps, "average": trained}

    def load_resume_state(self, state: dict[str, Any], model: dict[str, Tensor]) -> None:
        """Restore `resume_state`; weights that do not train are taken from the model's state."""
        self.steps = state["steps"]
        self.module.load_state_dict({**model, **state["average"]})
