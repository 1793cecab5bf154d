"""The decoder: an LSTM that looks at the image once per word (Xu et al. 2015, Section 3.1).

All rows of an image (its captions in training, its beams in decoding) share the image's memory, so
every state is laid out as (B, C, ·). One private method, `_advance`, is the recurrence;
`Decoder.step` and the teacher-forced `Decoder.forward` both run it. The forward pass
only hoists what does not depend on the state: the words' share of the gates before the loop, and
the projection to the vocabulary after it. It has two forms with equal results: on a CPU, finished
captions leave the loop and only real tokens are projected; the static form computes all rows to the
end and masks them, so that no size depends on the data and a GPU is never waited for.

Shapes: B images, C rows per image, L locations, D feature size, H_d hidden size, E embedding size,
T time, V vocabulary, M tokens: the real ones, or B·C·T in the static form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioner.config import AttentionConfig, DecoderConfig
from captioner.errors import ConfigError
from captioner.models.attention import Attention, AttentionOutput, Memory
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary

IGNORED = -100
"""Target at padding: what `cross_entropy` leaves out by default."""


class State(NamedTuple):
    """The LSTM's state.

    Attributes:
        hidden: (B, C, H_d).
        cell: (B, C, H_d).
    """

    hidden: Tensor
    cell: Tensor


class StepOutput(NamedTuple):
    """What one step gives.

    Attributes:
        logits: (B, C, V) scores of the next word.
        attention: (B, C, L) where the model looked for it.
        state: For the next step.
    """

    logits: Tensor
    attention: Tensor
    state: State


class DecoderOutput(NamedTuple):
    """What a pass over given captions gives; tokens are packed, padding is left out.

    In the static form padding stays: M = B·C·T, and targets there are `IGNORED`.

    Attributes:
        logits: (M, V), image by image, caption by caption, word by word.
        targets: (M,) the words that should have come.
        attention: (B, C, T, L); zero at padding.
        mask: (B, C, T) bool, true at real tokens.
        chosen: (M,) the location that hard attention drew for each token, -1 where it read the
            mean; None for soft attention.
    """

    logits: Tensor
    targets: Tensor
    attention: Tensor
    mask: Tensor
    chosen: Tensor | None = None

    def pack(self, values: Tensor) -> Tensor:
        """Lay values of all times (B, C, T) out as the tokens are: (M,)."""
        values = values.expand(self.mask.shape)
        return values.flatten() if len(self.targets) == self.mask.numel() else values[self.mask]


class Decoder(nn.Module):
    """LSTM with soft attention.

    Args:
        config: Sizes and options.
        attention: Of the attention.
        feature_size: D.
        vocabulary_size: V.

    Raises:
        ConfigError: Tied embeddings of a size that does not fit.
    """

    def __init__(
        self,
        config: DecoderConfig,
        attention: AttentionConfig,
        feature_size: int,
        vocabulary_size: int,
    ):
        super().__init__()
        self.config = config
        hidden, embedding = config.hidden, config.embedding
        self.embed = nn.Embedding(vocabulary_size, embedding)
        self.attention = Attention(
            attention, feature_size, hidden + (embedding if attention.see_word else 0)
        )
        # The LSTM's gates i, f, g, o, as three summands so that the words' one can be hoisted.
        self.word_gates = nn.Linear(embedding, 4 * hidden)
        self.context_gates = nn.Linear(feature_size, 4 * hidden, bias=False)
        self.hidden_gates = nn.Linear(hidden, 4 * hidden, bias=False)
        self.gate: nn.Linear | None = None
        if config.gate != "off":
            self.gate = nn.Linear(hidden, 1 if config.gate == "scalar" else feature_size)
        self.start_hidden: nn.Linear | None = None
        if config.initial_state == "mean":
            self.start_hidden = nn.Linear(feature_size, hidden)
            self.start_cell = nn.Linear(feature_size, hidden)
        # Between the LSTM and the vocabulary: as wide as the embedding, where they meet.
        output = embedding if config.deep_output or config.tied else hidden
        if config.deep_output:
            self.deep_hidden = nn.Linear(hidden, output)
            self.deep_context = nn.Linear(feature_size, output, bias=False)
        elif config.tied and hidden != embedding:
            raise ConfigError(
                f"decoder.tied needs decoder.hidden ({hidden}) equal to decoder.embedding "
                f"({embedding}), or deep_output=true"
            )
        self.project = nn.Linear(output, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self._initialize()

    def _initialize(self) -> None:
        hidden = self.config.hidden
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        for gates in (self.word_gates, self.context_gates):
            nn.init.uniform_(gates.weight, -(hidden**-0.5), hidden**-0.5)
        nn.init.orthogonal_(self.hidden_gates.weight)
        nn.init.zeros_(self.word_gates.bias)
        with torch.no_grad():
            self.word_gates.bias[hidden : 2 * hidden] = 1.0  # remember at first
        nn.init.uniform_(self.project.weight, -0.1, 0.1)
        nn.init.zeros_(self.project.bias)
        self.tie()

    def tie(self) -> None:
        """Make the two tensors that the configuration ties one."""
        if self.config.tied:
            self.project.weight = self.embed.weight

    def remember(self, grid: Grid) -> Memory:
        """Compute once per image what every step reads: (B, L, D) -> memory."""
        return self.attention.remember(grid.features, grid.size)

    def start(self, memory: Memory, rows: int = 1) -> State:
        """The state before the first word, the same for all C = `rows` rows of an image."""
        if self.start_hidden is None:
            shape = (memory.values.shape[0], rows, self.config.hidden)
            zeros = memory.values.new_zeros(shape)
            return State(zeros, zeros)
        mean = memory.values.mean(1)  # (B, D)
        hidden, cell = torch.tanh(self.start_hidden(mean)), torch.tanh(self.start_cell(mean))
        return State(  # (B, H_d) -> (B, C, H_d); a view would slow the matrix products down
            hidden[:, None].repeat(1, rows, 1), cell[:, None].repeat(1, rows, 1)
        )

    def step(self, state: State, words: Tensor, memory: Memory) -> StepOutput:
        """Read one word, look at the image, score the next word.

        Args:
            state: (B, C, H_d) twice.
            words: (B, C) ids of the previous words.
            memory: Of the B images.

        Returns:
            Logits (B, C, V), attention (B, C, L), next state.
        """
        embedded, gates = self._read(words)
        state, attended = self._advance(state, gates, embedded, memory)
        return StepOutput(
            self._output(state.hidden, attended.context, embedded), attended.weights, state
        )

    def _read(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded words (B, C, E) and their share of the gates (B, C, 4·H_d)."""
        cpu = words.device.type == "cpu" and not torch.onnx.is_in_onnx_export()
        if self.training or not cpu or words.numel() == 1:
            embedded = self.dropout(self.embed(words))
            return embedded, self.word_gates(embedded)
        # Rows of a search say the same few words: each is computed once. (On a GPU, to find them
        # would cost more than it saves.)
        distinct, place = words.unique(return_inverse=True)
        embedded = self.embed(distinct)
        return embedded[place], self.word_gates(embedded)[place]

    def forward(
        self,
        memory: Memory,
        captions: Tensor,
        lengths: Tensor,
        sampling_prob: float | Tensor = 0.0,
        *,
        static: bool = False,
    ) -> DecoderOutput:
        """Score given captions, every word told the true one before it.

        Args:
            memory: Of the B images.
            captions: (B, C, T + 1) ids from START to END, then padding. Rows of an image should be
                sorted by length, longest first, and images by their longest caption: unless
                `static`, what is finished then costs nothing.
            lengths: (B, C) number of targets (words and END) of each caption; 0 for none.
            sampling_prob: Probability that a word read is drawn from the model's own prediction
                instead of being the true one: scheduled sampling (Bengio et al. 2015). As a tensor
                () it may change from replay to replay of a CUDA graph.
            static: Compute all rows for all T steps. Nothing is read back from the device, and
                results differ from the other form's by rounding alone.
        """
        if static:
            return self._forward_static(memory, captions, lengths, sampling_prob)
        (batch, rows), total = lengths.shape, max(1, int(lengths.max()))
        mask = torch.arange(total, device=lengths.device) < lengths[..., None]  # (B, C, T)
        # At least one row: images without captions have a pass as well, with gradients of zero.
        live = _live(mask).clamp(min=1)  # (T, 2)
        states, words, steps = self._run(
            memory, captions[..., :total], sampling_prob, [(b, c) for b, c in live.tolist()]
        )
        real = mask.flatten().nonzero().squeeze(1)  # (M,) among B·C·T
        places = _places(live, batch, rows).flatten()[real]  # (M,) among the steps' rows

        def pack(tensors: list[Tensor]) -> Tensor:  # T times (images, columns, ·) -> (M, ·)
            return torch.cat([x.flatten(0, 1) for x in tensors]).index_select(0, places)

        deep = self.config.deep_output  # only then are context and word needed again
        contexts = [each.context for each in steps]
        logits = self._output(
            pack([state.hidden for state in states]),
            pack(contexts) if deep else contexts[0],
            pack(words) if deep else words[0],
        )
        packed = pack([each.weights for each in steps])
        maps = packed.new_zeros(mask.numel(), packed.shape[-1])  # (B·C·T, L)
        maps = maps.index_copy(0, real, packed).unflatten(0, mask.shape)
        cells = [each.chosen for each in steps if each.chosen is not None]  # all steps or none
        targets = captions[..., 1 : total + 1].flatten()[real]
        return DecoderOutput(logits, targets, maps, mask, pack(cells) if cells else None)

    def _forward_static(
        self, memory: Memory, captions: Tensor, lengths: Tensor, sampling_prob: float | Tensor
    ) -> DecoderOutput:
        """The same with all rows in all steps, masked."""
        total = captions.shape[-1] - 1
        mask = torch.arange(total, device=lengths.device) < lengths[..., None]  # (B, C, T)
        sizes = [(lengths.shape[0], lengths.shape[1])] * total
        states, words, steps = self._run(memory, captions[..., :-1], sampling_prob, sizes)

        def join(tensors: list[Tensor]) -> Tensor:  # T times (B, C, ·) -> (B·C·T, ·)
            return torch.stack(tensors, 2).flatten(0, 2)

        deep = self.config.deep_output
        contexts = [each.context for each in steps]
        logits = self._output(
            join([state.hidden for state in states]),
            join(contexts) if deep else contexts[0],
            join(words) if deep else words[0],
        )
        maps = torch.stack([each.weights for each in steps], 2)  # (B, C, T, L)
        maps = maps.masked_fill(~mask[..., None], 0.0)
        cells = [each.chosen for each in steps if each.chosen is not None]
        targets = captions[..., 1:].masked_fill(~mask, IGNORED).flatten()
        return DecoderOutput(logits, targets, maps, mask, join(cells) if cells else None)

    def _run(
        self,
        memory: Memory,
        inputs: Tensor,
        sampling_prob: float | Tensor,
        sizes: list[tuple[int, int]],
    ) -> tuple[list[State], list[Tensor], list[AttentionOutput]]:
        """Run the recurrence over words that are read: (B, C, T).

        Args:
            memory: Of the B images.
            inputs: (B, C, T) ids.
            sampling_prob: See `forward`.
            sizes: How many images and columns go on, at each of the T times.

        Returns:
            Of each time, for the images and columns that went on: the state after it, the
            embedded word that was read, and what was seen.
        """
        embedded = self.dropout(self.embed(inputs))  # (B, C, T, E)
        gates = self.word_gates(embedded)  # (B, C, T, 4·H_d)
        state = self.start(memory, inputs.shape[1])
        draws = isinstance(sampling_prob, Tensor) or sampling_prob > 0
        states: list[State] = []
        words: list[Tensor] = []
        steps: list[AttentionOutput] = []
        times = zip(sizes, gates.unbind(2), embedded.unbind(2), strict=True)
        for (images, columns), gate, word in times:
            memory = memory.first(images)
            gate, word = gate[:images, :columns], word[:images, :columns]
            if draws and states:
                said = (state.hidden, steps[-1].context, words[-1])
                drawn = self._draw(*(x[:images, :columns] for x in said))
                own = torch.rand(drawn.shape, device=drawn.device) < sampling_prob
                word = torch.where(own[..., None], self.dropout(self.embed(drawn)), word)
                gate = self.word_gates(word)
            state = State(*(x[:images, :columns] for x in state))
            state, attended = self._advance(state, gate, word, memory)
            states.append(state)
            words.append(word)
            steps.append(attended)
        return states, words, steps

    def _draw(self, hidden: Tensor, context: Tensor, embedded: Tensor) -> Tensor:
        """Words (B, C) drawn from what the model would have said after a step; no specials."""
        # Detached rather than in no_grad: until PyTorch 2.10, autocast kept the copies of weights
        # that it made there, and the pass that reads them again gave these weights no gradient.
        logits = self._output(hidden.detach(), context.detach(), embedded.detach())
        logits = logits.detach().float()
        logits[..., : len(Vocabulary.SPECIALS)].fill_(-torch.inf)  # the first ids
        # One draw of a multinomial (an exponential race), whose own checks wait for the device.
        probs = logits.softmax(-1)
        return (probs / torch.empty_like(probs).exponential_()).argmax(-1)

    def _advance(
        self, state: State, gates: Tensor, embedded: Tensor, memory: Memory
    ) -> tuple[State, AttentionOutput]:
        """The recurrence: look (Eq. 4 to 6), weigh by β, update the LSTM (Eq. 1 to 3).

        Args:
            state: (B, C, H_d) twice.
            gates: (B, C, 4·H_d), the previous word's share.
            embedded: (B, C, E), for an attention that sees the word.
            memory: Of the B images.
        """
        see_word = self.attention.config.see_word
        query = torch.cat((state.hidden, embedded), -1) if see_word else state.hidden
        attended: AttentionOutput = self.attention(query, memory)
        context = attended.context
        if self.gate is not None:
            context = torch.sigmoid(self.gate(state.hidden)) * context
        gates = gates.float() + self.context_gates(context) + self.hidden_gates(state.hidden)
        write, keep, candidate, read = gates.chunk(4, -1)
        cell = torch.sigmoid(keep) * state.cell + torch.sigmoid(write) * torch.tanh(candidate)
        state = State(torch.sigmoid(read) * torch.tanh(cell), cell)
        return state, attended._replace(context=context)

    def _output(self, hidden: Tensor, context: Tensor, embedded: Tensor) -> Tensor:
        """Logits over the vocabulary; with `deep_output`, L_o(E y + L_h h + L_z z) (Eq. 7)."""
        if not self.training and torch.is_autocast_enabled(hidden.device.type):
            # A search decides between near ties: in bf16 three captions in fifty change.
            with torch.autocast(hidden.device.type, enabled=False):
                return self._output(hidden.float(), context.float(), embedded.float())
        hidden = self.dropout(hidden)
        if self.config.deep_output:
            deep = embedded + self.deep_hidden(hidden) + self.deep_context(context)
            hidden = self.dropout(torch.tanh(deep))
        logits: Tensor = self.project(hidden)
        return logits


def _live(mask: Tensor) -> Tensor:
    """How many images and columns still go on at each time: (B, C, T) -> (T, 2).

    An image is live while any caption of it or of a later one goes on; columns likewise.
    """

    def last(real: Tensor) -> Tensor:  # (N, T) -> (T,)
        return (real * torch.arange(1, len(real) + 1, device=real.device)[:, None]).amax(0)

    return torch.stack((last(mask.any(1)), last(mask.any(0))), 1)


def _places(live: Tensor, batch: int, rows: int) -> Tensor:
    """Where each row of each time stands when the live rows of all times are joined: (B, C, T)."""
    columns = live[:, 1]  # (T,)
    before = live.prod(1).cumsum(0) - live.prod(1)  # (T,) rows of all earlier times
    image = torch.arange(batch, device=live.device)[:, None, None]
    row = torch.arange(rows, device=live.device)[:, None]
    return before + image * columns + row
