"""Rows that a search repeats a step on without leaving the device.

Every tensor that a step reads or writes keeps its address and its shape from the first word to the
last, and from batch to batch. No step asks the device for anything, so the host queues steps
ahead, and on a GPU one step is captured as a CUDA graph that is replayed for each word. Images
whose sentences have ended stay; that all have ended is asked every few steps, while the next steps
are computed.

Shapes: B images of the buffers (at least those of a batch), K rows per image, T steps,
V vocabulary, L locations, D feature size, A attention size, H_d hidden size.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioner.decoding.constraints import check_vocabulary, forbidden_ids
from captioner.decoding.options import DecodingOptions
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder, State
from captioner.tokenizer import Vocabulary

logger = logging.getLogger(__name__)

_capturing = threading.Lock()  # PyTorch captures one graph at a time

_STRIDE = 2  # steps between two questions whether all sentences have ended


class Rows:
    """K rows of each of B images: what `Decoder.step` reads, and the state that it changes.

    Args:
        decoder: In `eval()`.
        memory: Of B images; its contents are not used before `load`.
        rows: K.
        options: Lengths and forbidden words.

    Attributes:
        steps: T, with the step that chooses the last END.
        time: (1,) the number of steps so far, on the device.
        words: (B, K) the previous words.
        over: (1,) whether nothing is left to do; a search sets it.

    Raises:
        ConfigError: The options do not fit the vocabulary.
    """

    def __init__(self, decoder: Decoder, memory: Memory, rows: int, options: DecodingOptions):
        size, device = decoder.embed.num_embeddings, memory.values.device
        check_vocabulary(options, size)
        shape = batch, rows = len(memory.values), rows
        self.steps = options.max_length + 1
        self._decoder = decoder
        self._min_length = options.min_length
        values = memory.values
        if torch.is_autocast_enabled(device.type):  # else every step would convert them again
            values = values.to(torch.get_autocast_dtype(device.type))
        self._memory = memory._replace(
            values=torch.zeros_like(values, memory_format=torch.contiguous_format),
            keys=torch.zeros_like(memory.keys, memory_format=torch.contiguous_format),
        )
        hidden = torch.zeros(*shape, decoder.config.hidden, device=device)
        self._state = State(hidden, torch.zeros_like(hidden))
        self.words = torch.full(shape, Vocabulary.START, device=device)
        self.time = torch.zeros(1, dtype=torch.int64, device=device)
        self.over = torch.zeros(1, dtype=torch.bool, device=device)
        self._forbidden = torch.zeros(size, device=device)
        self._forbidden[[id for id in forbidden_ids(options) if id < size]] = -torch.inf
        # Which words each row has said that it must not say again, if there are such words.
        self._once = torch.zeros(size, dtype=torch.bool, device=device)
        self._said: Tensor | None = None
        if options.may_repeat is not None:
            self._once[len(Vocabulary.SPECIALS) :] = True
            self._once[[id for id in options.may_repeat if id < size]] = False
            self._said = torch.zeros(*shape, size, dtype=torch.bool, device=device)
        self.maps = torch.zeros(self.steps, batch, rows, values.shape[1], device=device)

    @property
    def capacity(self) -> int:
        """B."""
        return self.words.shape[0]

    def load(self, memory: Memory) -> None:
        """Start on other images, at most B; the rows of those that are missing mean nothing."""
        count = len(memory.values)
        self._memory.values[:count].copy_(memory.values)
        self._memory.keys[:count].copy_(memory.keys)
        state = self._decoder.start(memory, self.words.shape[1])
        for buffer, start in zip(self._state, state, strict=True):
            buffer[:count].copy_(start)
        self.words.fill_(Vocabulary.START)
        self.time.zero_()
        self.over.zero_()
        if self._said is not None:
            self._said.zero_()

    def predict(self) -> Tensor:
        """Feed the previous words: log-probabilities (B, K, V) of those that may follow."""
        result = self._decoder.step(self._state, self.words, self._memory)
        for buffer, after in zip(self._state, result.state, strict=True):
            buffer.copy_(after)
        self.maps.index_copy_(0, self.time, result.attention.float()[None])
        log_probs = result.logits.float().log_softmax(-1) + self._forbidden
        log_probs[..., Vocabulary.END].masked_fill_(self.time < self._min_length, -torch.inf)
        if self._said is not None:
            log_probs.masked_fill_(self._said, -torch.inf)
        return log_probs

    def say(self, words: Tensor) -> None:
        """Go on with these words (B, K)."""
        self.words.copy_(words)
        if self._said is not None:
            self._said.scatter_(-1, words[..., None], self._once[words][..., None])

    def reorder(self, parents: Tensor) -> None:
        """Let row k of each image continue its row `parents[:, k]`: (B, K)."""
        for buffer in (*self._state, *[self._said] * (self._said is not None)):
            assert buffer is not None
            buffer.copy_(buffer.gather(1, parents[..., None].expand_as(buffer)))


class Repeated:
    """A step that is repeated until a flag is set.

    Args:
        step: Changes tensors in place; queues all of its work without waiting for any.
        most: How often it is called at most.
        over: (1,) bool on the device: whether further steps change nothing that matters.
    """

    def __init__(self, step: Callable[[], None], most: int, over: Tensor):
        self._step = step
        self._most = most
        self._over = over
        self._tried = False

    def capture(self) -> None:
        """Capture the step as a CUDA graph if that was not tried before.

        The step is called twice, which changes its tensors. Where capturing fails, the step stays
        as it is.
        """
        if self._tried:
            return
        self._tried = True
        caller = torch.cuda.current_stream(self._over.device)
        try:
            with _capturing:
                self._step = self._captured(caller).replay
        except RuntimeError as error:
            torch.cuda.set_stream(caller)
            logger.warning(
                "no CUDA graph of the search, which will be slower: %s", str(error).splitlines()[0]
            )

    def _captured(self, caller: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        """Return a graph of the step, captured behind what the caller's stream has queued."""
        device = self._over.device
        stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(caller)
        # Tensors that autocast keeps for later would be gone when the graph is replayed.
        with torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=False,
        ):
            with torch.cuda.stream(stream):  # libraries set themselves up for this stream
                self._step()
                self._step()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._step()
        caller.wait_stream(stream)
        return graph

    def run(self) -> int:
        """Repeat the step; return how often."""
        asked: deque[_Answer] = deque()
        for count in range(1, self._most + 1):
            self._step()
            if count % _STRIDE == 0:
                # The answer to the last question is here by now, or the device is two strides
                # behind: then to wait for it costs nothing, as the next stride is queued.
                if asked and asked.popleft().read():
                    return count
                asked.append(_Answer(self._over))
        return self._most


class _Answer:
    """The value of a flag on a device, on its way to the host."""

    def __init__(self, flag: Tensor):
        self._event: torch.cuda.Event | None = None
        if flag.device.type == "cuda":
            self._value = flag.to("cpu", non_blocking=True)
            # Of the flag's device, which need not be the current one.
            self._event = torch.cuda.current_stream(flag.device).record_event()
        else:
            self._value = flag.cpu().clone()

    def read(self) -> bool:
        """Wait until it is here."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the host, waiting once for all of them."""
    copies = [each.to("cpu", non_blocking=True) for each in tensors]
    if tensors[0].device.type == "cuda":
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
