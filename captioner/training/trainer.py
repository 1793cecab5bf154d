"""The training loop, top to bottom: data, model, optimizer, steps, validation, files.

A run folder holds `config.yaml`, `log.jsonl`, `best.safetensors` (by the validation metric),
`last.safetensors` and, for exact resume, `last/state.pt`.

Under torchrun every process runs this loop on its part of each batch; the first one writes files.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.checkpoint import Header, save_checkpoint
from captioner.config import Config
from captioner.data.caption_batch import CaptionBatch
from captioner.data.dataset import make_loader
from captioner.data.prefetch import copied_ahead
from captioner.data.sampler import LengthAwareSampler
from captioner.errors import CaptionerError, CheckpointError, ConfigError
from captioner.models.caption_model import CaptionModel
from captioner.training.data import (
    build_datasets,
    build_vocabulary,
    load_embeddings,
    load_initial_model,
    preprocess_of,
    read_examples,
)
from captioner.training.distillation import load_teachers
from captioner.training.distributed import gather, rank, sum_over_ranks, world_size
from captioner.training.language import pretrain, read_texts
from captioner.training.log import AverageMeter, RunLog, training_record
from captioner.training.objectives import build_objective
from captioner.training.optim import AveragedWeights, build_optimizer, build_schedule, plain_rates
from captioner.training.run_state import (
    check_same_recipe,
    has_state,
    load_state,
    restore_rng,
    rng_state,
    save_state,
    write_config,
)
from captioner.training.step import TrainStep, check_finite
from captioner.training.stopping import StopSignals, StopWaiting
from captioner.training.validation import validate, write_samples
from captioner.utils.device import resolve_device, use_deterministic_algorithms

logger = logging.getLogger(__name__)


class Trainer:
    """One training run.

    Args:
        config: The recipe.
        resume: Continue the run in `config.out` from its last state.

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
        if config.deterministic:
            use_deterministic_algorithms()
        torch.manual_seed(config.seed)

        # Data, vocabulary and model
        train, val = read_examples(config.data, config.validation.limit)
        texts = read_texts(config)
        if config.init:
            self.model, header = load_initial_model(config)
            self.vocabulary = header.vocabulary
        else:
            self.vocabulary = build_vocabulary(train, config.data.min_count, texts)
            self.model = CaptionModel(config.model, len(self.vocabulary))
        if state is None:
            load_embeddings(self.model, self.vocabulary, config)
        self.model.to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        if texts and state is None:
            pretrain(self.model, self.vocabulary, texts, config, self.device)
        self.preprocess = preprocess_of(self.model.encoder)
        self.data = build_datasets(
            config, train, val, self.model.encoder, self.vocabulary, self.preprocess, self.device
        )
        images, processes = config.data.batch_size, world_size()
        if images % processes:
            raise ConfigError(
                f"data.batch_size={images} cannot be shared by {processes} processes: "
                "take a multiple"
            )
        self.sampler = LengthAwareSampler(
            self.data.train.lengths,
            images // processes,
            seed=config.seed,
            rank=rank(),
            world_size=processes,
        )
        self.loader = make_loader(
            self.data.train,
            self.sampler,
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
        )

        # Objective and optimizer
        self.total_steps = config.optim.epochs * len(self.sampler)
        teachers = load_teachers(
            config.loss.teachers,
            self.vocabulary,
            self.preprocess,
            None if self.data.train.cache is None else self.model.encoder,
            self.device,
        )
        self.objective = build_objective(
            self.model, self.preprocess, config, self.data.train, self.total_steps, teachers
        ).to(self.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, self.total_steps)
        self.average = AveragedWeights(self.model, config.optim.ema)

        # State
        self.step = 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self.meter = AverageMeter()
        self._unread: list[Tensor] = []  # values of steps, on the device
        if rank():  # the weights are equal everywhere, but dropout must differ
            torch.manual_seed(config.seed + rank())
        if state is not None:
            self._restore(state)
        self.train_step = TrainStep(
            self.objective, self.optimizer, self.schedule, self.average, config, self.device
        )
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

        self.signals = StopSignals(lambda: self.step)
        self._stop = False  # all processes stop, by agreement

    def run(self) -> dict[str, float]:
        """Train to the end, or until Ctrl-C or SIGTERM: then finish the step and save.

        Returns:
            The metrics of the last validation.

        Raises:
            CaptionerError: The loss is no longer finite.
            KeyboardInterrupt: A signal came before the first step or during a validation, came
                twice, or no step finished after it.
        """
        if rank() == 0:
            write_config(self.config, self.out / "config.yaml")
        with (
            contextlib.closing(self.log) if self.log is not None else contextlib.nullcontext(),
            self.signals.handled(),
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
                    self.signals.loses_nothing = True
                    self._validate(epoch + 1)
                    self.signals.loses_nothing = False
                self.sampler.set_epoch(epoch + 1)
                self._save_state()
            if self._stop:
                self._save_state()
                logger.warning("stopped at step %d; continue with --resume", self.step)
        return self.metrics

    def _run_epoch(self, bar: tqdm[Any]) -> None:
        """Run the remaining steps of the sampler's epoch."""
        self.model.train()
        start = time.monotonic()
        for batch in self._batches():
            self._unread.append(self._train_step(batch))
            self.sampler.advance()
            self.step += 1
            self.signals.loses_nothing = False
            bar.update()
            if self.step % self.config.log.every == 0:
                self._read_values()
                means = self.meter.pop_means()
                bar.set_postfix(loss=means["loss"], refresh=False)
                rate = float(self.schedule.get_last_lr()[0])
                self._log(step=self.step, epoch=self.sampler.epoch, learning_rate=rate, **means)
            if self._stop:
                return
            if self.step % self.config.save_every == 0:
                self._save_state()
            start, before = time.monotonic(), start
            self.signals.slowest_step = max(self.signals.slowest_step, start - before)

    def _batches(self) -> Iterator[CaptionBatch]:
        """Yield the batches of the epoch; end when told to stop while the images are read."""
        batches = iter(copied_ahead(self.loader, self.device))
        try:
            while True:
                self.signals.awaits_batch = True
                batch = next(batches, None)
                self.signals.awaits_batch = False
                if batch is None:
                    return
                yield batch
        except StopWaiting:
            self._stop = True
            self.loader.end_workers()  # they may be stuck
        finally:
            self.signals.awaits_batch = False

    def _train_step(self, batch: CaptionBatch) -> Tensor:
        """Run a step; return the values that `self.train_step.names` names."""
        images, stop = len(batch.indices), self.signals.told
        if world_size() > 1:
            local = torch.tensor([images, stop], device=self.device)
            images, stop = sum_over_ranks(local).tolist()
        self._stop = bool(stop)  # all stop after the same step, whichever was told to
        try:
            return self.train_step(batch, self.step, images)
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            reason = str(error).split(".")[0]
            raise ConfigError(f"deterministic=true: {reason}; take deterministic=false") from None

    def _read_values(self) -> None:
        """Read the values of the steps since the last call from the device, and check them.

        Raises:
            CaptionerError: A loss or norm is not finite.
        """
        if not self._unread:
            return
        rows = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, row in enumerate(rows, start=self.step - len(rows)):
            values = dict(zip(self.train_step.names, row, strict=True))
            check_finite(values, step)
            self.meter.add(**values)

    def _validate(self, epoch: int) -> None:
        """Caption the validation images with the averaged weights, score, and save the model."""
        more: dict[str, Any] = {}
        model = self.average.module
        if self.data.val:
            self.metrics, sums = validate(
                model, self.vocabulary, self.data, self.config, self.device
            )
            more["attention_sums"] = sums.record()
        self._log(step=self.step, epoch=epoch, validation=self.metrics, **more)
        if rank() == 0:
            parts = (model, self.vocabulary, self.preprocess, self.data.val)
            write_samples(self.out, *parts, self.config, self.device, epoch=epoch, step=self.step)
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
        save_checkpoint(self.out / name, header, self.average.module.state_dict())

    def _save_state(self) -> None:
        self._read_values()  # a state that is not finite is never saved
        random = gather(rng_state(self.device))
        if rank():
            return
        state = {
            "vocabulary": self.vocabulary.to_list(),
            "model": self.model.state_dict(),
            "average": self.average.resume_state(),
            "optimizer": plain_rates(self.optimizer.state_dict()),
            "schedule": plain_rates(self.schedule.state_dict()),
            "sampler": self.sampler.state_dict(),
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "total_steps": self.total_steps,
            "window": self.meter.state_dict(),
            "objective": self.objective.extra_state(),
            "random": random,
        }
        save_state(self.out, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["total_steps"] != self.total_steps:
            raise CheckpointError(
                f"{self.out} was to run {state['total_steps']} steps and is now to run "
                f"{self.total_steps}: resume with the images and captions it was started with"
            )
        try:
            if state["vocabulary"] != self.vocabulary.to_list():
                raise ValueError("another vocabulary")
            self.model.load_state_dict(state["model"])
            self.average.load_resume_state(state["average"], state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError):
            raise CheckpointError(
                f"{self.out} was trained with another vocabulary or version: "
                "resume with the captions and the captioner it was started with"
            ) from None
        self.schedule.load_state_dict(state["schedule"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.meter.load_state_dict(state["window"])
        self.objective.load_state_dict(state["objective"], strict=False)
        if rank() < len(state["random"]):  # else there are more processes than before
            restore_rng(state["random"][rank()], self.device)

    def _log(self, **values: Any) -> None:
        if self.log is not None:
            self.log.write(**values)
