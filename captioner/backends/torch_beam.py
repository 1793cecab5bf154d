"""Beam search on a device: as `captioner.decoding.beam_search`, and the same sentences.

The beams of an image keep their K rows. Each step notes which row each beam continues and with
which word; a sentence that ends joins the image's pool as the step and the row of its last word.
All of it is fetched once, after the last step, and the sentences are read backwards from there.

Shapes: B images, K beams, T steps, V vocabulary, L locations, M continuations of a beam that are
compared.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captioner.backends.torch_rows import Repeated, Rows, to_host
from captioner.decoding.beams import Beams, Results
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder
from captioner.tokenizer import Vocabulary


class DeviceBeams:
    """Searches the best sentences of B images; see `Rows`.

    Args:
        decoder: In `eval()`.
        memory: Of the largest batch to come.
        options: How to search, without groups, required words and n-grams that must not repeat.
    """

    def __init__(self, decoder: Decoder, memory: Memory, options: DecodingOptions):
        width = options.beams
        self._options = options
        self.rows = Rows(decoder, memory, width, options)
        self.repeated = Repeated(self._step, self.rows.steps, self.rows.over)
        device, shape = memory.values.device, self.rows.words.shape

        def table(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        lengths = range(1, self.rows.steps + 1)
        self._divisor = table([options.divisor(n) for n in lengths])
        self._largest_divisor = table([options.largest_divisor(n) for n in lengths])
        # fp64 sums, as on the host: rounding must not decide between near ties.
        self._totals = torch.zeros(shape, dtype=torch.float64, device=device)
        # The K best sentences that ended: score, and the step, row and log-probability of END.
        self._pool_scores = torch.zeros_like(self._totals)
        self._pool_times = torch.zeros(shape, dtype=torch.int64, device=device)
        self._pool_parents = torch.zeros_like(self._pool_times)
        self._pool_log_probs = torch.zeros(shape, device=device)
        # What each step chose for each beam.
        record = (self.rows.steps, *shape)
        self._words = torch.zeros(record, dtype=torch.int64, device=device)
        self._parents = torch.zeros_like(self._words)
        self._log_probs = torch.zeros(record, device=device)
        self._all_totals = torch.zeros(record, dtype=torch.float64, device=device)

    def load(self, memory: Memory) -> None:
        """Start on a batch of at most as many images as the first."""
        self.rows.load(memory)
        self._totals.fill_(-torch.inf)  # one beam until there is a word; none without an image
        self._totals[: len(memory.values), 0] = 0
        self._pool_scores.fill_(-torch.inf)
        self._pool_times.zero_()
        self._pool_parents.zero_()

    def _step(self) -> None:
        rows, width, time = self.rows, self._options.beams, self.rows.time
        log_probs = rows.predict()  # (B, K, V)
        # The best of all continuations are among the best of each beam.
        best, words = log_probs.topk(min(2 * width, log_probs.shape[-1]), -1)  # (B, K, M)
        words, order = words.sort(-1)
        best = best.gather(-1, order)
        # Of equal scores the first beam comes first, then the first word.
        scores = (self._totals[..., None] + best).flatten(1)
        scores, places = (
            each[:, : 2 * width] for each in scores.sort(dim=-1, descending=True, stable=True)
        )  # (B, 2K)
        parents = places // best.shape[-1]
        words, best = words.flatten(1).gather(1, places), best.flatten(1).gather(1, places)
        ends = words == Vocabulary.END

        # Only an end among the best K is one that a K-wide search would have chosen.
        ended = (scores / self._divisor.index_select(0, time)).masked_fill(~ends, -torch.inf)
        pool = torch.cat((self._pool_scores, ended[:, :width]), 1)
        pool, kept = (each[:, :width] for each in pool.sort(dim=-1, descending=True, stable=True))
        self._pool_scores.copy_(pool)
        for buffer, new in (
            (self._pool_times, time.expand_as(parents)),
            (self._pool_parents, parents),
            (self._pool_log_probs, best),
        ):
            buffer.copy_(torch.cat((buffer, new[:, :width]), 1).gather(1, kept))

        go_on = (
            ends.to(torch.int8).sort(dim=-1, stable=True).indices[:, :width]
        )  # in the same order
        parents, words, best, totals = (
            each.gather(1, go_on) for each in (parents, words, best, scores)
        )
        self._totals.copy_(totals)
        for record, new in (
            (self._words, words),
            (self._parents, parents),
            (self._log_probs, best),
            (self._all_totals, totals),
        ):
            record.index_copy_(0, time, new[None])
        rows.reorder(parents)
        rows.say(words)

        # log P can only fall, and is divided by most.
        bound = totals.amax(1) / self._largest_divisor.index_select(0, time)
        rows.over.copy_((self._pool_scores[:, self._options.candidates - 1] >= bound).all())
        time += 1

    def hypotheses(self, images: int, steps: int) -> list[list[Hypothesis]]:
        """Return the best sentences of the batch's images with their maps, fetched at once.

        Args:
            images: Of the batch.
            steps: How many were computed.
        """
        pool = (self._pool_scores, self._pool_times, self._pool_parents, self._pool_log_probs)
        records = (self._words, self._parents, self._log_probs, self._all_totals, self.rows.maps)
        fetched = to_host([each[:images] for each in pool] + [r[:steps, :images] for r in records])
        scores, times, parents, log_probs = (each.numpy() for each in fetched[:4])
        words, before, each_log_prob, totals, maps = (each.numpy() for each in fetched[4:])
        results = Results(images, self._options)
        places = results.history.add(maps.reshape(-1, *maps.shape[2:])).reshape(words.shape)
        history = _History(words, before, each_log_prob, places)
        # The step that chooses the last END lengthens no unfinished sentence.
        last = min(steps, self._options.max_length) - 1
        rows = np.broadcast_to(np.arange(words.shape[2]), scores.shape)
        live = history.read(np.full_like(times, last), rows, totals[last], last + 1)
        finished = history.read(times - 1, parents, scores, steps)
        at = (np.arange(images)[:, None], np.arange(scores.shape[1]), times)
        finished.words[at] = Vocabulary.END
        finished.log_probs[at] = log_probs
        results.collect(np.arange(images), finished, live)
        return results.hypotheses()


class _History:
    """What the steps chose, to read sentences from: (T, B, K) each.

    Args:
        words: That beams were continued with.
        parents: The rows that were continued.
        log_probs: Of the words.
        places: Of each row's map.
    """

    def __init__(
        self, words: np.ndarray, parents: np.ndarray, log_probs: np.ndarray, places: np.ndarray
    ):
        self._words = words
        self._parents = parents
        self._log_probs = log_probs
        self._places = places

    def read(self, last: np.ndarray, rows: np.ndarray, totals: np.ndarray, length: int) -> Beams:
        """Read sentences backwards.

        Args:
            last: (B, N) the step that chose the last word of each; -1 for none.
            rows: (B, N) the beam that it lies in after that step.
            totals: (B, N) of the sentences.
            length: T of the result.
        """
        images, shape = np.arange(len(rows))[:, None], (*rows.shape, length)
        beams = Beams(
            totals,
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.int64),
        )
        for time in reversed(range(int(last.max(initial=-1)) + 1)):
            there = time <= last
            parents = self._parents[time, images, rows]
            for array, chosen in (
                (beams.words, self._words[time, images, rows]),
                (beams.log_probs, self._log_probs[time, images, rows]),
                (beams.places, self._places[time, images, parents]),
            ):
                array[..., time] = np.where(there, chosen, array[..., time])
            rows = np.where(there, parents, rows)
        return beams
