"""Self-critical training: the model samples sentences, and learns from how good each was.

Shapes: B images, C captions per image, N sampled sentences per image, T time, M tokens of a pass
(see `DecoderOutput`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captioner.backends.torch import TorchStepper
from captioner.backends.torch_sampling import Drawn
from captioner.backends.torch_search import DeviceSearch
from captioner.config import LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import greedy_search, image_key, sample
from captioner.image.transforms import Preprocess
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.models.attention import Memory
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import IGNORED
from captioner.tokenizer import Vocabulary
from captioner.training.distributed import sum_over_ranks
from captioner.training.losses import BatchCounts, Losses, attention_losses, word_loss
from captioner.training.objective import Objective

Sentence = list[int]

_NEVER_SAMPLED = (Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK)


@dataclass
class SampledBatch(CaptionBatch):
    """A batch with sentences that the model sampled, and their rewards.

    Attributes:
        sampled: (B, N, T + 1) int64: START, words, END unless the sentence was cut, then PAD.
        sampled_lengths: (B, N) int64, number of targets.
        rewards: (B, N) CIDEr-D, 0 to 10.
        advantages: (B, N) by how much each exceeds the baseline.
    """

    sampled: Tensor
    sampled_lengths: Tensor
    rewards: Tensor
    advantages: Tensor

    _padded = ("captions", "sampled")


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
        self._search = DeviceSearch(model.decoder)

    def count(self, batch: CaptionBatch) -> Tensor:
        """Count the words of the references, and the sentences to sample: (2,).

        How many words the sampled sentences have is not known yet.
        """
        tokens = batch.lengths.sum()
        return torch.stack((tokens, torch.full_like(tokens, self._sentences(batch))))

    def prepare(self, batch: CaptionBatch, step: int) -> CaptionBatch:
        """Sample sentences and reward them, before the pass with gradients.

        The encoder runs twice then, here as it is when the model captions.
        """
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            sampled = self._sampled(batch, self.remember(batch), step)
        self.model.train(training)
        if not self.config.cross_entropy:  # the references have done their part
            empty = batch.captions[..., :2], torch.zeros_like(batch.lengths)
            sampled.captions, sampled.lengths = empty
        return sampled.to_bucket()

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int | Tensor) -> Losses:
        """Sample sentences, reward them, and weight their log-probabilities.

        A thread computes the rewards while the model runs over the sentences with gradients. A
        batch that `prepare` returned has its sentences and rewards already.
        """
        decoder, config = self.model.decoder, self.config
        memory = self.remember(batch)
        if self.static and not isinstance(batch, SampledBatch):
            batch = self._sampled(batch, memory, int(step))
            torch.clear_autocast_cache()  # see below
        if isinstance(batch, SampledBatch):
            lengths, rewards, better = batch.sampled_lengths, batch.rewards, batch.advantages
            result = decoder(memory, batch.sampled, lengths, static=True)
        else:
            drawn, baseline = self._draw(batch, memory, int(step))
            # Until PyTorch 2.10, copies of weights that were made without gradients had none here.
            torch.clear_autocast_cache()
            rewarded = self._pool.submit(
                advantages, drawn, baseline, reference_ids(batch), self.frequency
            )
            captions, lengths, order, places = pack_sentences(drawn)
            device = memory.values.device
            lengths = lengths.to(device)
            result = decoder(memory.select(order.to(device)), captions.to(device), lengths)
            found, over = rewarded.result()
            ordered = np.take_along_axis(over[order.numpy()], places.numpy(), 1)
            rewards, better = (
                torch.from_numpy(x).to(device, torch.float32) for x in (found, ordered)
            )
        logits = result.logits.float()
        never = torch.zeros_like(logits[0])
        for word in _NEVER_SAMPLED:
            never[word].fill_(-torch.inf)
        log_probs = (logits + never).log_softmax(-1)
        log_probs = log_probs.gather(-1, result.targets.clamp(min=0)[:, None]).squeeze(-1)  # (M,)
        log_probs = log_probs.masked_fill(result.targets == IGNORED, 0.0)
        weights = result.pack(better[..., None] * result.mask)  # (M,)
        policy = -(weights * log_probs).sum() / counts.captions
        tokens = lengths.sum()
        tokens, count = sum_over_ranks(
            torch.stack((tokens, torch.full_like(tokens, rewards.numel())))
        )
        sampled_counts = counts._replace(tokens=counts.captions * tokens / count)
        attention = attention_losses(result.attention, result.mask, config, sampled_counts)
        imitation: dict[str, Tensor] = {}
        total = policy + attention.total
        if config.cross_entropy:
            result = decoder(memory, batch.captions, batch.lengths, static=self.static)
            loss = word_loss(result, config, counts)
            total = total + config.cross_entropy * loss
            imitation = {"cross_entropy": loss.detach()}
        parts = {
            "reward": rewards.sum() / counts.captions,
            "length": lengths.sum() / counts.captions,
            **imitation,
            **attention.parts,
        }
        return Losses(total, parts)

    def _sentences(self, batch: CaptionBatch) -> int:
        return len(batch.indices) * self.config.draws

    def _draw(
        self, batch: CaptionBatch, memory: Memory, step: int
    ) -> tuple[list[list[Sentence]], list[list[Sentence]] | None]:
        """Sample N sentences of each of B images, and one greedy one if it is the baseline."""
        decoder, config = self.model.decoder, self.config
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
        return sampled, baseline

    def _sampled(self, batch: CaptionBatch, memory: Memory, step: int) -> SampledBatch:
        """Sample the same sentences on the device, and reward them."""
        decoder, config = self.model.decoder, self.config
        training = decoder.training
        decoder.eval()
        options = DecodingOptions(
            sample=True, num_captions=config.draws, max_length=self.max_length, seed=step
        )
        keys = [image_key(str(index).encode()) for index in batch.indices.tolist()]
        drawn = self._search.draw(memory, options, keys)
        baseline = None
        if config.baseline == "greedy":
            options = DecodingOptions(beam=1, max_length=self.max_length)
            baseline = _to_lists(self._search.draw(memory, options))
        decoder.train(training)
        sentences = _to_lists(drawn)
        rewards, better = advantages(sentences, baseline, reference_ids(batch), self.frequency)
        longest = max(len(sentence) for image in sentences for sentence in image)
        device = batch.indices.device
        return SampledBatch(
            **vars(batch),
            sampled=F.pad(drawn.words[..., :longest], (1, 0), value=Vocabulary.START),
            sampled_lengths=drawn.lengths,
            rewards=torch.from_numpy(rewards).float().to(device),
            advantages=torch.from_numpy(better).float().to(device),
        )


def _to_lists(drawn: Drawn) -> list[list[Sentence]]:
    """Fetch sentences from the device."""
    words, lengths = drawn.words.tolist(), drawn.lengths.tolist()
    return [
        [row[:length] for row, length in zip(*image, strict=True)]
        for image in zip(words, lengths, strict=True)
    ]


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
