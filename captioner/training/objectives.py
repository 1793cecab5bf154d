"""Objectives: the model together with its loss, as the one module that a training step runs.

DistributedDataParallel wraps it, so all that needs gradients happens in its `forward`. There are
three: cross-entropy, cross-entropy with hard attention, and self-critical training.

Shapes: B images, C captions per image, N sampled sentences per image, T time, M real tokens,
L locations, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from captioner.backends.torch import TorchStepper
from captioner.config import Config, LossConfig
from captioner.data.dataset import CaptionBatch, CaptionDataset
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import greedy_search, image_key, sample
from captioner.errors import ConfigError
from captioner.image.transforms import Preprocess
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import DecoderOutput
from captioner.tokenizer import Vocabulary
from captioner.training.distillation import Teachers
from captioner.training.distributed import sum_over_ranks
from captioner.training.losses import (
    BatchCounts,
    Losses,
    attention_entropy,
    attention_losses,
    caption_losses,
    word_loss,
)

Sentence = list[int]

_BASELINE_DECAY = 0.9  # of the moving average at each batch; the paper's figure
_NEVER_SAMPLED = [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]


class Objective(nn.Module):
    """Cross-entropy of the reference captions.

    Args:
        model: The model to train.
        preprocess: Normalizes images.
        config: The weights of the loss.
        total_steps: Of the training; scheduled sampling rises to its full rate over them.

    Attributes:
        teachers: Models to imitate, or None.
    """

    teachers: Teachers | None = None

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.config = config
        self.total_steps = total_steps

    def count(self, batch: CaptionBatch) -> tuple[int, int]:
        """Count the tokens and captions of a batch, for `BatchCounts`."""
        return int(batch.lengths.sum()), int((batch.lengths > 0).sum())

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """Compute the losses of a batch, or of a part of one.

        Args:
            batch: On the model's device.
            counts: Of the global batch.
            step: Of the training; it seeds sampled sentences and schedules scheduled sampling.
        """
        result = self.teacher_forced(batch, step)
        wanted = None
        if self.teachers is not None:
            static = len(result.targets) == result.mask.numel()
            inputs = self.inputs(batch)
            wanted = self.teachers.probabilities(
                inputs, batch.captions, batch.lengths, static=static
            )
        return caption_losses(result, self.config, counts, wanted)

    def teacher_forced(self, batch: CaptionBatch, step: int) -> DecoderOutput:
        """Run the model over the reference captions."""
        sampling_prob = self.config.scheduled_sampling * step / self.total_steps
        result: DecoderOutput = self.model(
            self.inputs(batch), batch.captions, batch.lengths, sampling_prob
        )
        return result

    def inputs(self, batch: CaptionBatch) -> Tensor | list[Tensor]:
        """Return normalized images (B, 3, S, S), or cached stages in fp32."""
        if batch.features is not None:
            return [stage.float() for stage in batch.features]
        assert batch.images is not None
        return self.preprocess.normalize(batch.images)

    def extra_state(self) -> dict[str, Tensor]:
        """Return the buffers beside the model, for exact resume."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}


class HardAttention(Objective):
    """Cross-entropy, and REINFORCE for where to look (Xu et al. 2015, Section 4.1).

    One location is sampled per word, so no gradient flows through the choice. Instead the
    log-probability of the chosen locations is raised where the caption came out better than the
    baseline, a moving average (Eq. 12), and an entropy term keeps the choice varied.

    The reward of all locations of a caption is the mean log-probability of its words (the paper
    takes the sum, which would weigh long captions more).

    Args:
        model: With `attention.mode=hard`.
        preprocess: Normalizes images.
        config: Weights; `exploration` is the paper's λ_e, λ_r is 1.
        total_steps: Of the training.
    """

    baseline: Tensor

    def __init__(
        self, model: CaptionModel, preprocess: Preprocess, config: LossConfig, total_steps: int
    ):
        super().__init__(model, preprocess, config, total_steps)
        self.register_buffer("baseline", torch.tensor(torch.nan))

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """Compute the losses of a batch; see `Objective.forward`."""
        result = self.teacher_forced(batch, step)
        losses = caption_losses(result, self.config, counts)
        assert result.chosen is not None
        log_probs = result.logits.detach().float().log_softmax(-1)
        log_probs = log_probs.gather(-1, result.targets[:, None]).squeeze(-1)  # (M,)
        per_word = log_probs.new_zeros(result.mask.shape)  # (B, C, T)
        per_word[result.mask] = log_probs
        words = result.mask.sum(-1)  # (B, C)
        reward = per_word.sum(-1) / words.clamp(min=1)
        total, count = sum_over_ranks(torch.stack((reward.sum(), (words > 0).sum())))
        mean = torch.where(count > 0, total / count, self.baseline)
        baseline = torch.where(self.baseline.isnan(), mean, self.baseline)
        self.baseline.copy_(_BASELINE_DECAY * baseline + (1 - _BASELINE_DECAY) * mean)

        sampled = result.chosen >= 0  # (M,)
        weights = result.attention[result.mask]  # (M, L)
        chosen = weights.gather(-1, result.chosen.clamp(min=0)[:, None]).squeeze(-1)
        better = (reward - baseline)[..., None].expand(result.mask.shape)[result.mask]  # (M,)
        reinforce = -(better * chosen.clamp(min=1e-12).log() * sampled).sum() / counts.tokens
        entropy = attention_entropy(result.attention, result.mask) / counts.tokens
        added = reinforce - self.config.exploration * entropy
        parts = {**losses.parts, "word_log_prob": reward.sum() / counts.captions}
        return Losses(losses.total + added, parts)


class SelfCritical(Objective):
    """The expected CIDEr-D of sentences that the model samples, by REINFORCE (Rennie et al. 2017).

    The log-probability of each sampled sentence is weighted by its reward less a baseline: the
    reward of the greedy sentence, or the mean reward of the image's other samples. The latter
    (Luo 2020) needs no greedy sentence and varies less.

    END is a word like the others, in sentences and references: otherwise a sentence that breaks
    off ("a man in a") would lose nothing.

    With `loss.cross_entropy` the references are imitated as well: the reward alone makes the model
    forget words that few captions use.

    Args:
        model: The model to train.
        preprocess: Normalizes images.
        config: Number of samples, baseline, weights of the losses of the attention.
        total_steps: Of the training.
        frequency: In how many training images each n-gram of word ids (with END) occurs.
        max_length: Of the sampled sentences, in words.
    """

    def __init__(
        self,
        model: CaptionModel,
        preprocess: Preprocess,
        config: LossConfig,
        total_steps: int,
        frequency: DocumentFrequency,
        max_length: int,
    ):
        super().__init__(model, preprocess, config, total_steps)
        self.frequency = frequency
        self.max_length = max_length
        self._pool = ThreadPoolExecutor(1)

    def count(self, batch: CaptionBatch) -> tuple[int, int]:
        """Count the words of the references, and the sentences to sample.

        How many words the sampled sentences have is not known yet.
        """
        return int(batch.lengths.sum()), len(batch.indices) * self.config.draws

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """Sample sentences, reward them, and weight their log-probabilities.

        A thread computes the rewards while the model runs over the sentences with gradients.
        """
        encoder, decoder, config = self.model.encoder, self.model.decoder, self.config
        inputs = self.inputs(batch)
        stages = inputs if isinstance(inputs, list) else encoder.forward_features(inputs)
        memory = decoder.remember(encoder.forward_neck(stages))
        training = decoder.training
        decoder.eval()  # sentences are sampled as the model captions, without dropout
        options = DecodingOptions(
            sample=True, num_captions=config.draws, max_length=self.max_length, seed=step
        )
        keys = [image_key(str(index).encode()) for index in batch.indices.tolist()]
        sampled = [
            [sentence_ids(found) for found in sentences]
            for sentences in sample(TorchStepper(decoder, memory), options, keys)
        ]
        baseline = None
        if config.baseline == "greedy":
            options = DecodingOptions(beam=1, max_length=self.max_length)
            greedy = greedy_search(TorchStepper(decoder, memory), options)
            baseline = [[sentence_ids(found)] for found in greedy]
        decoder.train(training)
        references = reference_ids(batch)
        rewarded = self._pool.submit(advantages, sampled, baseline, references, self.frequency)

        captions, lengths, order, places = pack_sentences(sampled)
        device = memory.values.device
        result = decoder(memory.select(order.to(device)), captions.to(device), lengths.to(device))
        logits = result.logits.float().index_fill(
            -1, torch.tensor(_NEVER_SAMPLED, device=result.logits.device), -torch.inf
        )
        log_probs = logits.log_softmax(-1).gather(-1, result.targets[:, None]).squeeze(-1)  # (M,)
        rewards, advantage = rewarded.result()
        weights = torch.from_numpy(np.take_along_axis(advantage[order.numpy()], places.numpy(), 1))
        weights = weights.to(log_probs)[..., None].expand(result.mask.shape)[result.mask]  # (M,)
        policy = -(weights * log_probs).sum() / counts.captions
        tokens, count = sum_over_ranks(log_probs.new_tensor([int(lengths.sum()), lengths.numel()]))
        sampled_counts = counts._replace(tokens=counts.captions * tokens / count)
        attention = attention_losses(result.attention, result.mask, config, sampled_counts)
        imitation: dict[str, Tensor] = {}
        total = policy + attention.total
        if config.cross_entropy:
            result = decoder(memory, batch.captions, batch.lengths)
            loss = word_loss(result, config, counts)
            total = total + config.cross_entropy * loss
            imitation = {"cross_entropy": loss.detach()}
        parts = {
            "reward": log_probs.new_tensor(rewards.sum()) / counts.captions,
            "length": lengths.sum().to(log_probs) / counts.captions,
            **imitation,
            **attention.parts,
        }
        return Losses(total, parts)


def sentence_ids(found: Hypothesis) -> Sentence:
    """Return word ids, with END unless `max_length` cut the sentence."""
    return [*found.words, *[Vocabulary.END] * found.finished]


def reference_ids(batch: CaptionBatch) -> list[list[Sentence]]:
    """Return the captions of each image of a batch as word ids with END."""
    captions, lengths = batch.captions.tolist(), batch.lengths.tolist()
    return [
        [row[1 : count + 1] for row, count in zip(rows, counts, strict=True) if count]
        for rows, counts in zip(captions, lengths, strict=True)
    ]


def advantages(
    sampled: Sequence[Sequence[Sentence]],
    baseline: Sequence[Sequence[Sentence]] | None,
    references: Sequence[Sequence[Sentence]],
    frequency: DocumentFrequency,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rewards of sampled sentences, and by how much each exceeds the baseline.

    Args:
        sampled: N sentences of each of B images.
        baseline: One sentence per image whose reward is subtracted; None subtracts the mean
            reward of the image's other sentences.
        references: Of each image. An image without any gives no reward and no advantage.
        frequency: Of the training set.

    Returns:
        CIDEr-D on its own scale of 0 to 10 (B, N), and the advantages (B, N).
    """
    rewards = _rewards(sampled, references, frequency)  # (B, N)
    if baseline is not None:
        return rewards, rewards - _rewards(baseline, references, frequency)
    count = rewards.shape[1]
    others = (rewards.sum(1, keepdims=True) - rewards) / (count - 1)
    return rewards, rewards - others


def _rewards(
    sentences: Sequence[Sequence[Sentence]],
    references: Sequence[Sequence[Sentence]],
    frequency: DocumentFrequency,
) -> np.ndarray:
    """Return the CIDEr-D of each sentence: (B, N)."""
    rewards = np.zeros((len(sentences), len(sentences[0])))
    images = [image for image, captions in enumerate(references) if captions]
    if images:
        flat = [sentence for image in images for sentence in sentences[image]]
        known = [references[image] for image in images for _ in sentences[image]]
        scores = cider_d(flat, known, frequency).per_image
        rewards[images] = scores.reshape(len(images), -1)
    return rewards


def pack_sentences(
    sampled: Sequence[Sequence[Sentence]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort sentences as the decoder needs them: the longest first, within images and among them.

    Returns:
        Ids (B, N, T + 1) from START on, then padding; lengths (B, N); the order of the images
        (B,); the order of the sentences within each of the sorted images (B, N).
    """
    lengths = torch.tensor([[len(sentence) for sentence in image] for image in sampled])
    lengths, places = lengths.sort(dim=1, descending=True, stable=True)
    order = lengths[:, 0].argsort(descending=True, stable=True)
    lengths, places = lengths[order], places[order]
    captions = torch.full((*lengths.shape, int(lengths.max()) + 1), Vocabulary.PAD)
    captions[..., 0] = Vocabulary.START
    for row, image in enumerate(order.tolist()):
        for column, place in enumerate(places[row].tolist()):
            sentence = sampled[image][place]
            captions[row, column, 1 : len(sentence) + 1] = torch.tensor(sentence)
    return captions, lengths, order, places


def build_objective(
    model: CaptionModel,
    preprocess: Preprocess,
    config: Config,
    data: CaptionDataset,
    total_steps: int,
    teachers: Teachers | None = None,
) -> Objective:
    """Build the objective that a recipe names.

    Raises:
        ConfigError: The model's attention does not allow it, or there are too few images.
    """
    hard = config.model.attention.mode == "hard"
    if config.loss.objective == "cross_entropy":
        kind = HardAttention if hard else Objective
        objective = kind(model, preprocess, config.loss, total_steps)
        if hard and teachers is not None:
            raise ConfigError("loss.teachers need model.attention.mode=soft")
        objective.teachers = teachers
        return objective
    if teachers is not None:
        raise ConfigError("loss.teachers are for loss.objective=cross_entropy")
    if hard:
        raise ConfigError("loss.objective=self_critical needs model.attention.mode=soft")
    references = [captions for captions in data.references() if captions]
    if len(references) < 2:
        raise ConfigError("loss.objective=self_critical needs at least two captioned images")
    frequency = DocumentFrequency(references)
    longest = config.validation.max_length
    return SelfCritical(model, preprocess, config.loss, total_steps, frequency, longest)
