"""The decoder's training step against the textbook way of writing it.

    python benchmarks/decoder_step.py                  # CPU, one caption per photo
    python benchmarks/decoder_step.py --captions 5     # and five captions per photo beside it
    python benchmarks/decoder_step.py --device cuda

One step is forward, loss (cross-entropy and doubly stochastic penalty) and backward, in fp32, from
features that are ready and need no gradient. :class:`Textbook` below is written as tutorials do
it: captions sorted by length, attention keys recomputed from the features at every time step,
``LSTMCell`` on the embedding and the gated context, scores over the vocabulary at every step and
padded afterwards. Both have the same weights and no dropout; losses must be equal to 1e-4 and the
gradients close before anything is timed. The two take turns, and the medians are compared; the
target is 4 times on a CPU. Processor time is printed too: on a busy machine with ``--threads 1`` it
is the figure to trust. On a GPU, captioner's step runs in static shapes as a CUDA graph, as in a
training, and the targets are 5 times and, with five captions, 8 times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioner.config import AttentionConfig, DecoderConfig, LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.training.graphs import StepGraphs
from captioner.training.losses import caption_losses

SIDE, FEATURES, SIZE, VOCABULARY = 14, 2048, 512, 10_000  # SIZE = A = H_d = E
PENALTY = 1.0 / SIDE**2  # λ: tutorials take the mean over locations where the paper has the sum


class Textbook(nn.Module):
    """An attention LSTM as tutorials write it; one row per caption, photos repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, SIZE)
        self.encoder_attention = nn.Linear(FEATURES, SIZE)
        self.decoder_attention = nn.Linear(SIZE, SIZE)
        self.full_attention = nn.Linear(SIZE, 1)
        self.start_hidden = nn.Linear(FEATURES, SIZE)
        self.start_cell = nn.Linear(FEATURES, SIZE)
        self.gate = nn.Linear(SIZE, FEATURES)
        self.cell = nn.LSTMCell(SIZE + FEATURES, SIZE)
        self.project = nn.Linear(SIZE, VOCABULARY)

    def forward(self, features: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """Loss of captions (N, T + 1) with features (N, L, D) of their own; lengths (N,)."""
        lengths, order = lengths.sort(descending=True)
        features, captions = features[order], captions[order]
        embedded = self.embed(captions)  # (N, T + 1, E)
        mean = features.mean(1)
        hidden, cell = torch.tanh(self.start_hidden(mean)), torch.tanh(self.start_cell(mean))
        steps = lengths.tolist()
        scores = features.new_zeros(len(steps), steps[0], VOCABULARY)
        maps = features.new_zeros(len(steps), steps[0], features.shape[1])
        for t in range(steps[0]):
            count = sum(length > t for length in steps)  # captions that go on
            hidden, cell, seen = hidden[:count], cell[:count], features[:count]
            keys = self.encoder_attention(seen)  # (count, L, A)
            query = self.decoder_attention(hidden)[:, None]
            weights = self.full_attention(torch.tanh(keys + query)).squeeze(2).softmax(1)
            context = (seen * weights[..., None]).sum(1)  # (count, D)
            context = torch.sigmoid(self.gate(hidden)) * context
            inputs = torch.cat((embedded[:count, t], context), 1)
            hidden, cell = self.cell(inputs, (hidden, cell))
            scores[:count, t] = self.project(hidden)
            maps[:count, t] = weights
        packed = pack_padded_sequence(scores, steps, batch_first=True).data
        targets = pack_padded_sequence(captions[:, 1:], steps, batch_first=True).data
        penalty = (1 - maps.sum(1)).square().mean()
        return F.cross_entropy(packed, targets) + penalty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--batch", type=int, default=32, help="captions a step")
    parser.add_argument("--captions", type=int, default=1, help="per photo, for a second line")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(0)
    ours, textbook = build(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(
        f"{SIDE} × {SIDE} × {FEATURES} features, A = H = E = {SIZE}, V = {VOCABULARY}, "
        f"{options.batch} captions a step, fp32, {device}{threads}"
    )
    compare(ours, textbook, options.batch, 1, options.repetitions)
    if options.captions > 1:
        compare(ours, textbook, options.batch, options.captions, options.repetitions)


def build(device: torch.device) -> tuple[Decoder, Textbook]:
    """Both decoders, with the same random weights."""
    ours = Decoder(
        DecoderConfig(embedding=SIZE, hidden=SIZE, gate="channel", dropout=0.0),
        AttentionConfig(kind="additive", size=SIZE),
        FEATURES,
        VOCABULARY,
    )
    textbook = Textbook()
    with torch.no_grad():
        for parameter, copies in pairs(ours, textbook):
            parameter.copy_(side_by_side(copies).view_as(parameter))
        textbook.cell.bias_hh.zero_()  # a second bias of the gates, and one that softmax cancels
        textbook.full_attention.bias.zero_()
    return ours.to(device), textbook.to(device)


def pairs(ours: Decoder, textbook: Textbook) -> list[tuple[Tensor, list[Tensor]]]:
    """Each of the textbook's tensors, and ours that stand side by side in it."""
    attention = ours.attention
    assert isinstance(attention.key, nn.Linear)
    assert ours.start_hidden is not None
    linears = [
        (textbook.encoder_attention, attention.key),
        (textbook.decoder_attention, attention.query),
        (textbook.start_hidden, ours.start_hidden),
        (textbook.start_cell, ours.start_cell),
        (textbook.gate, ours.gate),
        (textbook.project, ours.project),
    ]
    return [
        *((theirs.weight, [mine.weight]) for theirs, mine in linears),
        *((theirs.bias, [mine.bias]) for theirs, mine in linears),
        (textbook.embed.weight, [ours.embed.weight]),
        (textbook.full_attention.weight, [attention.score]),
        (textbook.cell.weight_ih, [ours.word_gates.weight, ours.context_gates.weight]),
        (textbook.cell.weight_hh, [ours.hidden_gates.weight]),
        (textbook.cell.bias_ih, [ours.word_gates.bias]),
    ]


def side_by_side(tensors: Sequence[Tensor | None]) -> Tensor:
    """Join matrices (or vectors, as columns) along their second axis."""
    return torch.cat([x.reshape(len(x), -1) for x in tensors if x is not None], 1)


def compare(ours: Decoder, textbook: Textbook, batch: int, captions: int, repetitions: int) -> None:
    """Check that both give the same loss and gradients, then time them in turns.

    Raises:
        SystemExit: They differ.
    """
    photos = max(1, batch // captions)
    device = ours.project.weight.device
    features = torch.randn(photos, SIDE**2, FEATURES).relu().to(device)
    lengths = (11.5 + 2.5 * torch.randn(photos, captions)).round().long().clamp(7, 25)  # with END
    lengths = lengths.sort(1, descending=True).values
    lengths = lengths[lengths[:, 0].argsort(descending=True)].to(device)  # as captioner's batches
    words = torch.randint(4, VOCABULARY, (photos, captions, int(lengths.max()) + 1)).to(device)
    repeated = features.repeat_interleave(captions, 0)  # as a loader of single captions gives them
    recipe = LossConfig(label_smoothing=0.0, coverage=PENALTY, coverage_target=1.0)
    static = device.type == "cuda"
    ready = CaptionBatch(None, [features], words, lengths, torch.arange(photos, device=device))

    def compute(batch: CaptionBatch, _step: Tensor | int, _parts: int) -> Tensor:
        ours.zero_grad()
        assert batch.features is not None
        memory = ours.remember(Grid(batch.features[0], (SIDE, SIDE)))
        result = ours(memory, batch.captions, batch.lengths, static=static)
        loss = caption_losses(result, recipe).total
        loss.backward()
        return loss.detach()

    graphs = StepGraphs(compute, device)

    def our_step() -> float:
        value = graphs(ready.to_bucket(), 0, 1) if static else compute(ready, 0, 1)
        return value.item()

    def textbook_step() -> float:
        textbook.zero_grad()
        loss = textbook(repeated, words.flatten(0, 1), lengths.flatten())
        loss.backward()
        return loss.item()

    for _ in range(3 if static else 0):  # the third is captured
        our_step()
    losses = our_step(), textbook_step()
    worst = max(
        float((theirs.grad - mine).abs().max() / theirs.grad.abs().max())
        for theirs, mine in (
            (theirs, side_by_side([x.grad for x in mine]).view_as(theirs))
            for theirs, mine in pairs(ours, textbook)
        )
        if theirs.grad is not None
    )
    print(
        f"\n{photos} photos × {captions} captions, {int(lengths.sum())} words, longest "
        f"{int(lengths.max())}; losses {losses[0]:.6f} and {losses[1]:.6f}, "
        f"gradients within {worst:.0e}"
    )
    if abs(losses[0] - losses[1]) > 1e-4 or worst > 1e-3:
        raise SystemExit("the two do not compute the same: the times would mean nothing")
    steps = {"textbook": textbook_step, "captioner": our_step}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    busy: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start, processor = time.perf_counter(), time.process_time()
            step()  # ends by reading the loss, so a GPU has finished too
            wall[name].append(1000 * (time.perf_counter() - start))
            busy[name].append(1000 * (time.process_time() - processor))
    for name, values in wall.items():
        print(
            f"{name:12}{statistics.median(values):9.1f} ms a step "
            f"({min(values):.0f} to {max(values):.0f}), "
            f"{statistics.median(busy[name]):.0f} ms of processor time"
        )
    (slow, fast), (work, less) = (
        [statistics.median(values) for values in times.values()] for times in (wall, busy)
    )
    print(f"{'ratio':12}{slow / fast:9.1f}, of processor time {work / less:.1f}")
    print(
        f"RESULT decoder step, {captions} captions a photo: "
        f"{slow / fast:.1f} x the textbook's speed"
    )


if __name__ == "__main__":
    main()
