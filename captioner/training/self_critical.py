"""Self-critical sequence training: the model's own sentences, weighted by how good they are.

Rennie et al. 2017: sentences are drawn from the model, and each one's log-probability is raised by
its CIDEr-D reward less a baseline, the reward of the greedy sentence. The "new" self-critical
variant (Luo 2020) takes the mean reward of the photo's other samples as the baseline: it needs no
greedy sentence and varies less.

END is a word like the others, in sentences and references: otherwise a sentence that breaks off
("a man in a") would cost nothing.

Shapes: B photos, N sentences per photo, T time, M real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from captioner.backends.torch import TorchStepper
from captioner.config import LossConfig
from captioner.data.dataset import CaptionBatch
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import greedy_search, image_key, sample
from captioner.image.transforms import Preprocess
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from captioner.training.distributed import sum_over_ranks
from captioner.training.losses import BatchCounts, Losses, attention_losses
from captioner.training.objectives import Objective

Sentence = list[int]


class SelfCritical(Objective):
    """The expected CIDEr-D of sentences that the model draws, by REINFORCE.

    Args:
        model: What learns.
        preprocess: Normalises photos.
        config: Number of draws, baseline, weights of what is asked of the attention.
        total_steps: Of the training.
        frequency: In how many training photos each n-gram of word ids (with END) occurs.
        max_length: Of the drawn sentences, in words.
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
        """The sentences that will be drawn; how many words they have is not known yet."""
        return 0, len(batch.indices) * self.config.draws

    def forward(self, batch: CaptionBatch, counts: BatchCounts, step: int) -> Losses:
        """Draw, judge, and weigh the log-probabilities.

        The reward is computed while the model goes over the sentences once more, with gradients.
        """
        encoder, decoder, config = self.model.encoder, self.model.decoder, self.config
        pictures = self.pictures(batch)
        stages = pictures if isinstance(pictures, list) else encoder.forward_features(pictures)
        memory = decoder.remember(encoder.forward_neck(stages))
        training = decoder.training
        decoder.eval()  # sentences come from the model as it captions, without dropout
        options = DecodingOptions(
            sample=True, num_captions=config.draws, max_length=self.max_length, seed=step
        )
        keys = [image_key(str(index).encode()) for index in batch.indices.tolist()]
        drawn = [
            [sentence_ids(found) for found in sentences]
            for sentences in sample(TorchStepper(decoder, memory), options, keys)
        ]
        baseline = None
        if config.baseline == "greedy":
            options = DecodingOptions(beam=1, max_length=self.max_length)
            found = greedy_search(TorchStepper(decoder, memory), options)
            baseline = [[sentence_ids(one)] for one in found]
        decoder.train(training)
        references = reference_ids(batch)
        judged = self._pool.submit(advantages, drawn, baseline, references, self.frequency)

        captions, lengths, order, places = pack_sentences(drawn)
        result = decoder(
            memory.select(order.to(memory.values.device)),
            captions.to(memory.values.device),
            lengths.to(memory.values.device),
        )
        logits = result.logits.float().index_fill(
            -1, torch.tensor(_NEVER, device=result.logits.device), -torch.inf
        )
        picked = logits.log_softmax(-1).gather(-1, result.targets[:, None]).squeeze(-1)  # (M,)
        rewards, advantage = judged.result()
        weights = torch.from_numpy(np.take_along_axis(advantage[order.numpy()], places.numpy(), 1))
        weights = weights.to(picked)[..., None].expand(result.mask.shape)[result.mask]  # (M,)
        policy = -(weights * picked).sum() / counts.captions
        words, count = sum_over_ranks(picked.new_tensor([int(lengths.sum()), lengths.numel()]))
        tokens = counts._replace(tokens=counts.captions * words / count)
        looks = attention_losses(result.attention, result.mask, config, tokens)
        parts = {
            "reward": picked.new_tensor(rewards.sum()) / counts.captions,
            "length": lengths.sum().to(picked) / counts.captions,
            **looks.parts,
        }
        return Losses(policy + looks.total, parts)


_NEVER = [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]


def sentence_ids(found: Hypothesis) -> Sentence:
    """Word ids, with END if the sentence ended by itself."""
    return [*found.words, *[Vocabulary.END] * found.finished]


def reference_ids(batch: CaptionBatch) -> list[list[Sentence]]:
    """What people wrote about each photo of a batch: word ids with END."""
    captions, lengths = batch.captions.tolist(), batch.lengths.tolist()
    return [
        [row[1 : count + 1] for row, count in zip(rows, counts, strict=True) if count]
        for rows, counts in zip(captions, lengths, strict=True)
    ]


def advantages(
    drawn: Sequence[Sequence[Sentence]],
    baseline: Sequence[Sequence[Sentence]] | None,
    references: Sequence[Sequence[Sentence]],
    frequency: DocumentFrequency,
) -> tuple[np.ndarray, np.ndarray]:
    """The rewards of the drawn sentences, and how much each is above the baseline.

    Args:
        drawn: N sentences of each of B photos.
        baseline: One sentence per photo whose reward is subtracted; None subtracts the mean
            reward of the photo's other sentences.
        references: Of each photo. A photo without any gives no reward and no advantage.
        frequency: Of the training set.

    Returns:
        CIDEr-D on its own scale of 0 to 10 (B, N), and the advantages (B, N).
    """
    rewards = _rewards(drawn, references, frequency)  # (B, N)
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
    """CIDEr-D of each sentence: (B, N)."""
    rewards = np.zeros((len(sentences), len(sentences[0])))
    photos = [photo for photo, each in enumerate(references) if each]
    if photos:
        flat = [sentence for photo in photos for sentence in sentences[photo]]
        known = [references[photo] for photo in photos for _ in sentences[photo]]
        scores = cider_d(flat, known, frequency).per_image
        rewards[photos] = scores.reshape(len(photos), -1)
    return rewards


def pack_sentences(
    drawn: Sequence[Sequence[Sentence]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sentences as the decoder likes to read them: the longest first, in photos and among photos.

    Returns:
        Ids (B, N, T + 1) from START on, then padding; lengths (B, N); the photos' order (B,); the
        sentences' order in each photo (B, N), after the photos were ordered.
    """
    lengths = torch.tensor([[len(sentence) for sentence in photo] for photo in drawn])
    lengths, places = lengths.sort(dim=1, descending=True, stable=True)
    order = lengths[:, 0].argsort(descending=True, stable=True)
    lengths, places = lengths[order], places[order]
    captions = torch.full((*lengths.shape, int(lengths.max()) + 1), Vocabulary.PAD)
    captions[..., 0] = Vocabulary.START
    for row, photo in enumerate(order.tolist()):
        for column, place in enumerate(places[row].tolist()):
            sentence = drawn[photo][place]
            captions[row, column, 1 : len(sentence) + 1] = torch.tensor(sentence)
    return captions, lengths, order, places
