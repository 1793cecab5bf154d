"""The training loop, top to bottom: data, model, optimiser, steps, validation, files.

A run folder holds ``config.yaml``, ``log.jsonl``, ``best.safetensors`` (by the validation metric),
``last.safetensors`` and ``last/state.pt`` for exact resume.

Shapes: B photos, C captions per photo, T time, S image side.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.checkpoint import Header, load_checkpoint, save_checkpoint
from captioner.config import Config, load_config, to_dict
from captioner.data.batches import CaptionBatch, make_loader
from captioner.data.sampler import LengthAwareSampler
from captioner.device import autocast, resolve_device
from captioner.errors import CaptionerError, CheckpointError
from captioner.files import replacing
from captioner.models.captioner import CaptionModel
from captioner.preprocess import Preprocess
from captioner.text import Vocabulary, tokenize
from captioner.training.datasets import TrainingData, build_datasets, read_examples
from captioner.training.log import JsonLinesLog
from captioner.training.losses import caption_losses
from captioner.training.optimizer import AveragedWeights, build_optimizer, build_schedule
from captioner.training.record import training_record
from captioner.training.state import load_state, restore_random, save_state
from captioner.training.validation import validate

logger = logging.getLogger(__name__)

_LOG_EVERY = 20  # steps
_MAY_CHANGE = {"out", "init", "device", "data.root", "data.cache", "data.workers"}


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
        state = load_state(self.out) if resume else None
        if resume:
            check_same_recipe(config, self.out / "config.yaml")
        if not resume and (self.out / "last").exists():
            raise CaptionerError(f"{self.out} holds a run already: add --resume, or change out=")
        torch.manual_seed(config.seed)

        # Data, vocabulary and model
        train, val = read_examples(config.data, config.validation.limit)
        if config.init:
            self.model, header = load_start(config)
            self.vocabulary = header.vocabulary
        else:
            self.vocabulary = Vocabulary.build(
                (tokenize(caption) for example in train for caption in example.captions),
                min_count=config.data.min_count,
            )
            self.model = CaptionModel(config.model, len(self.vocabulary))
        self.model.to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        normalization = self.model.encoder.normalization
        self.preprocess = Preprocess(
            size=config.model.encoder.image_size,
            mean=(normalization.mean[0], normalization.mean[1], normalization.mean[2]),
            std=(normalization.std[0], normalization.std[1], normalization.std[2]),
        )
        self.data: TrainingData = build_datasets(
            config, train, val, self.model.encoder, self.vocabulary, self.preprocess, self.device
        )
        self.sampler = LengthAwareSampler(
            self.data.train.lengths, config.data.batch_size, seed=config.seed
        )
        self.loader = make_loader(self.data.train, self.sampler, workers=config.data.workers)

        # Optimiser, schedule, average
        self.optimizer = build_optimizer(self.model, config.optim)
        self.total_steps = config.optim.epochs * len(self.sampler)
        self.schedule = build_schedule(self.optimizer, config.optim, self.total_steps)
        self.average = AveragedWeights(self.model, config.optim.ema)
        self.step = 0
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        if state is not None:
            self._restore(state)
        self.log = JsonLinesLog(self.out / "log.jsonl", self.step if resume else None)
        self._stop = False

    def run(self) -> dict[str, float]:
        """Train to the end, or until Ctrl-C, which finishes the step and saves.

        Returns:
            The metrics of the last validation.

        Raises:
            CaptionerError: The loss is no longer finite.
        """
        self._write_config()
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="train", unit="step", disable=None
        )
        try:
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
                    break
            if self._stop:
                self._save_state()
                logger.warning("stopped at step %d; continue with --resume", self.step)
        finally:
            bar.close()
            signal.signal(signal.SIGINT, previous)
        return self.metrics

    def _run_epoch(self, bar: tqdm[Any]) -> None:
        """The steps that remain of the sampler's epoch."""
        self.model.train()
        for batch in self.loader:
            losses, norm = self._train_step(batch.to(self.device))
            self.sampler.advance()
            self.step += 1
            bar.update()
            if self.step % _LOG_EVERY == 0:
                values = {name: round(float(value), 5) for name, value in losses.items()}
                bar.set_postfix(loss=values["loss"], refresh=False)
                rate = self.schedule.get_last_lr()[0]
                self.log.write(
                    step=self.step,
                    epoch=self.sampler.epoch,
                    learning_rate=rate,
                    gradient_norm=round(norm, 4),
                    **values,
                )
            if self._stop:
                return

    def _train_step(self, batch: CaptionBatch) -> tuple[dict[str, Tensor], float]:
        """Forward, backward, clip, update."""
        with autocast(self.device, self.config.optim.precision):
            result = self.model(self._pictures(batch), batch.captions, batch.lengths)
        losses = caption_losses(result, self.config.loss)
        if not torch.isfinite(losses.total):
            raise CaptionerError(
                f"the loss is {losses.total.item()} at step {self.step}: training stopped; "
                "lower optim.learning_rate or optim.clip, or set optim.precision=fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.optim.clip
        )
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        return {
            "loss": losses.total.detach(),
            "cross_entropy": losses.cross_entropy.detach(),
            "coverage": losses.coverage.detach(),
            "attention_entropy": losses.entropy.detach(),
        }, float(norm)

    def _pictures(self, batch: CaptionBatch) -> Tensor | list[Tensor]:
        """Normalised photos (B, 3, S, S), or cached stages in fp32."""
        if batch.features is not None:
            return [stage.float() for stage in batch.features]
        assert batch.images is not None
        return self.preprocess.normalize(batch.images)

    def _validate(self, epoch: int) -> None:
        """Caption the validation photos freely, score them, keep the best model."""
        with self.average.applied():
            self.model.eval()
            if self.data.val:
                self.metrics = validate(
                    self.model, self.vocabulary, self.data, self.config, self.device
                )
            self.log.write(step=self.step, epoch=epoch, validation=self.metrics)
            logger.info("epoch %d: %s", epoch, self.metrics)
            self._save_model("last.safetensors", epoch)
            score = self.metrics.get(self.config.validation.metric, float(epoch))
            if self.best is None or score > self.best:
                self.best = score
                self._save_model("best.safetensors", epoch)

    def _save_model(self, name: str, epoch: int) -> None:
        record = training_record(self.config, self.data, epoch, self.step, self.metrics)
        header = Header(
            config=self.config.model,
            vocabulary=self.vocabulary,
            preprocess=self.preprocess,
            record=record,
        )
        save_checkpoint(self.out / name, header, self.model.state_dict())

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(),
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "total_steps": self.total_steps,
        }
        save_state(self.out, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["total_steps"] != self.total_steps:
            raise CheckpointError(
                f"{self.out} was to run {state['total_steps']} steps and is now to run "
                f"{self.total_steps}: resume with the photos and captions it was started with"
            )
        try:
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
        restore_random(state)

    def _write_config(self) -> None:
        import yaml

        with replacing(self.out / "config.yaml") as temporary:
            text = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._stop = True
        logger.warning("finishing this step, then saving (Ctrl-C again to quit at once)")


def check_same_recipe(config: Config, path: Path) -> None:
    """Refuse to resume a run with a recipe that would give another result.

    Where things lie (folders, device, number of workers) may change.

    Raises:
        CheckpointError: Names the keys that differ.
    """
    here, there = (_flat(to_dict(each)) for each in (config, load_config(path)))
    differing = [
        f"{key} was {there.get(key)!r} and is now {here.get(key)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and key not in _MAY_CHANGE
    ]
    if differing:
        raise CheckpointError(
            f"cannot resume {path.parent}: {'; '.join(differing)}; "
            "resume with the recipe it was started with"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def load_start(config: Config) -> tuple[CaptionModel, Header]:
    """The model that ``config.init`` names, rebuilt with this recipe's configuration.

    Weights that only this recipe's model has keep their fresh initial values.

    Raises:
        CheckpointError: The shapes of the two models do not fit together.
    """
    assert config.init is not None
    start, header = load_checkpoint(config.init)
    model = CaptionModel(config.model, len(header.vocabulary), pretrained=False)
    try:
        missing, unexpected = model.load_state_dict(start.state_dict(), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"init={config.init} does not fit this recipe: {reason}") from None
    if missing or unexpected:
        logger.warning("init: fresh weights %s; unused %s", missing, unexpected)
    return model, header
