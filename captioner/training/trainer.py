"""The training loop, top to bottom: data, model, optimiser, steps, validation, files.

A run folder holds ``config.yaml``, ``log.jsonl``, ``best.safetensors`` (by the validation metric),
``last.safetensors`` and, for exact resume, ``last/state.pt`` with the state before it.

Under torchrun every process runs this loop on its part of each batch; the first one writes files.

Shapes: B photos, C captions per photo, T time, S image side.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from captioner.checkpoint import Header, save_checkpoint
from captioner.config import Config
from captioner.data.dataset import CaptionBatch, make_loader
from captioner.data.sampler import LengthAwareSampler
from captioner.errors import CaptionerError, CheckpointError
from captioner.models.caption_model import CaptionModel
from captioner.training.data import TrainingData, build_datasets, read_examples
from captioner.training.distributed import (
    gather,
    rank,
    replicate,
    sum_over_ranks,
    world_size,
)
from captioner.training.embeddings import start_embeddings
from captioner.training.log import RunLog
from captioner.training.losses import BatchCounts
from captioner.training.objectives import build_objective
from captioner.training.optim import AveragedWeights, build_optimizer, build_schedule
from captioner.training.record import training_record
from captioner.training.run_state import (
    has_state,
    load_state,
    random_state,
    restore_random,
    save_state,
)
from captioner.training.samples import write_samples
from captioner.training.signals import on_signals
from captioner.training.start import (
    build_vocabulary,
    check_same_recipe,
    load_start,
    photos_per_process,
    preprocess_of,
    write_config,
)
from captioner.training.validation import validate
from captioner.training.window import AverageMeter
from captioner.utils.device import autocast, resolve_device

logger = logging.getLogger(__name__)


class Trainer:
    """One training run.

    Args:
        config: The recipe.
        resume: Continue the run in ``config.out`` from its last state.

    Raises:
        CaptionerError: The recipe or its data cannot be used.
    """

    def __init__(self, config: Config, *, resume: bool = False):
        self.config = config
        self.out = Path(config.out)
        self.device = resolve_device(config.device)
        if not resume and has_state(self.out):
            raise CaptionerError(f"{self.out} holds a run already: add --resume, or change out=")
        state = load_state(self.out) if resume else None
        if resume:
            check_same_recipe(config, self.out / "config.yaml")
        torch.manual_seed(config.seed)

        # Data, vocabulary and model
        train, val = read_examples(config.data, config.validation.limit)
        if config.init:
            self.model, header = load_start(config)
            self.vocabulary = header.vocabulary
        else:
            self.vocabulary = build_vocabulary(train, config.data.min_count)
            self.model = CaptionModel(config.model, len(self.vocabulary))
        if state is None:
            start_embeddings(self.model, self.vocabulary, config)
        self.model.to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        self.preprocess = preprocess_of(self.model.encoder)
        self.data: TrainingData = build_datasets(
            config, train, val, self.model.encoder, self.vocabulary, self.preprocess, self.device
        )
        self.sampler = LengthAwareSampler(
            self.data.train.lengths,
            photos_per_process(config),
            seed=config.seed,
            rank=rank(),
            world_size=world_size(),
        )
        self.loader = make_loader(
            self.data.train,
            self.sampler,
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
        )

        # What is minimised, and how
        self.total_steps = config.optim.epochs * len(self.sampler)
        self.objective = build_objective(
            self.model, self.preprocess, config, self.data.train, self.total_steps
        ).to(self.device)
        self.replicated = replicate(self.objective)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, self.total_steps)
        self.average = AveragedWeights(self.model, config.optim.ema)
        self.step = 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self.window = AverageMeter()
        if rank():  # the same weights everywhere, but not the same dropout
            torch.manual_seed(config.seed + rank())
        if state is not None:
            self._restore(state)
        if len(set(gather(self.step))) > 1:
            raise CheckpointError(
                f"the processes do not see the same state in {self.out}: "
                "out= must be a folder that all machines share"
            )
        self.log: RunLog | None = None
        if rank() == 0:
            self.log = RunLog(
                self.out,
                (self.step, self.sampler.epoch) if resume else None,
                tensorboard=config.log.tensorboard,
            )
        self._told_to_stop = False  # this process
        self._stop = False  # all, by agreement

    def run(self) -> dict[str, float]:
        """Train to the end, or until Ctrl-C or SIGTERM, which finish the step and save.

        Returns:
            The metrics of the last validation.

        Raises:
            CaptionerError: The loss is no longer finite.
        """
        if rank() == 0:
            write_config(self.config, self.out / "config.yaml")
        with (
            contextlib.closing(self.log) if self.log is not None else contextlib.nullcontext(),
            on_signals(self._on_signal),
            tqdm(
                total=self.total_steps,
                initial=self.step,
                desc="train",
                unit="step",
                disable=True if rank() else None,
            ) as bar,
        ):
            for epoch in range(self.sampler.epoch, self.config.optim.epochs):
                self.sampler.set_epoch(epoch)
                self._run_epoch(bar)
                if self._stop:
                    break
                self._save_state()  # should validation fail, the epoch is not lost
                last = epoch + 1 == self.config.optim.epochs
                if last or (epoch + 1) % self.config.validation.every == 0:
                    self._validate(epoch + 1)
                self.sampler.set_epoch(epoch + 1)
                self._save_state()
            if self._stop:
                self._save_state()
                logger.warning("stopped at step %d; continue with --resume", self.step)
        return self.metrics

    def _run_epoch(self, bar: tqdm[Any]) -> None:
        """The steps that remain of the sampler's epoch."""
        self.model.train()
        for batch in self.loader:
            parts, norm = self._train_step(batch)
            self.sampler.advance()
            self.step += 1
            bar.update()
            self.window.add(gradient_norm=norm, **parts)
            if self.step % self.config.log.every == 0:
                means = self.window.means()
                bar.set_postfix(loss=means["loss"], refresh=False)
                rate = self.schedule.get_last_lr()[0]
                self._log(step=self.step, epoch=self.sampler.epoch, learning_rate=rate, **means)
            if self._stop:
                return
            if self.step % self.config.save_every == 0:
                self._save_state()

    def _train_step(self, batch: CaptionBatch) -> tuple[dict[str, float], float]:
        """Forward and backward in parts, clip, update.

        Returns:
            The parts of the loss, as means over the global batch, and the gradients' norm.
        """
        self.optimizer.zero_grad(set_to_none=True)
        local = (*self.objective.count(batch), len(batch.indices), int(self._told_to_stop))
        tokens, captions, photos, stop = sum_over_ranks(torch.tensor(local, device=self.device))
        self._stop = bool(stop)  # all stop after the same step, whoever was told to
        # A batch without a single caption teaches nothing, but divides nothing by zero.
        counts = BatchCounts(
            tokens.clamp(min=1) / world_size(), captions.clamp(min=1) / world_size()
        )
        total: dict[str, Tensor] = {}
        # As many parts in every process, though one may have a photo less: parts are run together.
        pieces = batch.split(min(self.config.optim.accumulate, int(photos) // world_size()))
        for number, piece in enumerate(pieces):
            synchronise = number + 1 == len(pieces)
            with contextlib.ExitStack() as stack:
                if isinstance(self.replicated, DistributedDataParallel) and not synchronise:
                    stack.enter_context(self.replicated.no_sync())
                with autocast(self.device, self.config.optim.precision):
                    losses = self.replicated(piece.to(self.device), counts, self.step)
                losses.total.backward()
            for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
                total[name] = total.get(name, 0) + value
        values = sum_over_ranks(torch.stack(list(total.values())).float()) / world_size()
        parts = dict(zip(total, values.tolist(), strict=True))
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad],
            self.config.optim.clip or math.inf,
        ).item()
        for name, value in (("loss", parts["loss"]), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise CaptionerError(
                    f"the {name} is {value} at step {self.step}: training stopped; "
                    "lower optim.learning_rate or optim.clip, or set optim.precision=fp32"
                )
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        return parts, norm

    def _validate(self, epoch: int) -> None:
        """Caption the validation photos freely, score them, keep the best model."""
        more: dict[str, Any] = {}
        with self.average.applied():
            self.model.eval()
            if self.data.val:
                self.metrics, sums = validate(
                    self.model, self.vocabulary, self.data, self.config, self.device
                )
                more["attention_sums"] = sums.record()
            self._log(step=self.step, epoch=epoch, validation=self.metrics, **more)
            if rank() == 0:
                parts = (self.model, self.vocabulary, self.preprocess, self.data.val)
                write_samples(
                    self.out, *parts, self.config, self.device, epoch=epoch, step=self.step
                )
            logger.info("epoch %d: %s", epoch, self.metrics)
            self._save_model("last.safetensors", epoch)
            score = self.metrics.get(self.config.validation.metric, float(epoch))
            if self.best is None or score > self.best:
                self.best = score
                self._save_model("best.safetensors", epoch)

    def _save_model(self, name: str, epoch: int) -> None:
        if rank():
            return
        record = training_record(self.config, self.data, epoch, self.step, self.metrics)
        header = Header(
            config=self.config.model,
            vocabulary=self.vocabulary,
            preprocess=self.preprocess,
            record=record,
        )
        save_checkpoint(self.out / name, header, self.model.state_dict())

    def _save_state(self) -> None:
        random = gather(random_state(self.device))
        if rank():
            return
        state = {
            "vocabulary": self.vocabulary.to_list(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(),
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "total_steps": self.total_steps,
            "window": self.window.state_dict(),
            "objective": self.objective.memory_state(),
            "random": random,
        }
        save_state(self.out, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["total_steps"] != self.total_steps:
            raise CheckpointError(
                f"{self.out} was to run {state['total_steps']} steps and is now to run "
                f"{self.total_steps}: resume with the photos and captions it was started with"
            )
        try:
            if state["vocabulary"] != self.vocabulary.to_list():
                raise ValueError("another vocabulary")
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError):
            raise CheckpointError(
                f"{self.out} was trained with another vocabulary or version: "
                "resume with the captions and the captioner it was started with"
            ) from None
        self.schedule.load_state_dict(state["schedule"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.window.load_state_dict(state["window"])
        self.objective.load_state_dict(state["objective"], strict=False)
        if rank() < len(state["random"]):  # else there are more processes than before
            restore_random(state["random"][rank()], self.device)

    def _log(self, **values: Any) -> None:
        if self.log is not None:
            self.log.write(**values)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self._told_to_stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._told_to_stop = True
        logger.warning("finishing this step, then saving (Ctrl-C again to quit at once)")
