"""PyTorch: for training, evaluation and GPUs, and for models without an export.

Shapes: B images, K rows per image (beams or samples), S side of the encoder's square, V vocabulary,
L locations.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from captioner.backends.base import BATCH_SIZE
from captioner.backends.torch_search import DeviceSearch, supports
from captioner.checkpoint import Header, load_checkpoint
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.errors import CaptionerError
from captioner.models.attention import Memory
from captioner.models.caption_model import CaptionModel
from captioner.models.decoder import Decoder, State
from captioner.models.encoder import Grid
from captioner.models.fuse_bn import fuse_bn
from captioner.utils.device import Precision, autocast, resolve_device, trunk_autocast

_LANES = 4  # batches at once on a CPU; each holds its own activations in memory
_BATCH_SIZE_GPU = 128
_threads_lock = threading.Lock()


class TorchStepper:
    """Runs `Decoder.step` for a search; see `captioner.backends.base.Stepper`.

    On a CPU the arrays it returns are the step's own memory. It keeps no gradients.

    Args:
        decoder: In `eval()`.
        memory: Of the B images.
    """

    def __init__(self, decoder: Decoder, memory: Memory):
        self._decoder = decoder
        self._memory = memory
        with torch.no_grad():
            self._state = decoder.start(memory, 1)

    @property
    def images(self) -> int:
        """B, the images that are still searched."""
        return len(self._memory.values)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the attention maps."""
        return self._memory.size

    @torch.no_grad()
    def step(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed the previous words (B, K); return log-probabilities (B, K, V), maps (B, K, L)."""
        result = self._decoder.step(self._state, self._index(words), self._memory)
        self._state = result.state
        log_probs = result.logits.float().log_softmax(-1)
        return log_probs.cpu().numpy(), result.attention.float().cpu().numpy()

    @torch.no_grad()
    def reorder(self, parents: np.ndarray) -> None:
        """Let row k of each image continue its row `parents[:, k]`: (B, K')."""
        rows = self._index(np.arange(len(parents))[:, None])
        index = self._index(parents)
        self._state = State(*(x[rows, index] for x in self._state))

    @torch.no_grad()
    def keep(self, images: np.ndarray) -> None:
        """Go on with some of the images only: indices (B',)."""
        index = self._index(images)
        self._memory = self._memory.select(index)
        self._state = State(*(x[index] for x in self._state))

    def _index(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._memory.values.device)


class TorchBackend:
    """A model in PyTorch; see `captioner.backends.base.Backend`.

    On a CPU it may be used in a forked process too, where it computes on one core per thread.

    Args:
        model: The network; it is not changed, a fused copy computes.
        header: Vocabulary and preprocessing that belong to it.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto` computes in bf16 where the device is faster with it.

    Raises:
        ConfigError: The device is not there.
    """

    name = "torch"

    def __init__(
        self,
        model: CaptionModel,
        header: Header,
        device: str = "auto",
        precision: Precision = "auto",
    ):
        self.header = header
        self.device = resolve_device(device)
        self._process = os.getpid()
        self.precision: Precision = precision
        self.model = fuse_bn(model).to(self.device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        self._device_search = DeviceSearch(self.model.decoder)
        self._search_stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._search_stream = torch.cuda.Stream(self.device)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str = "auto", precision: Precision = "auto"
    ) -> TorchBackend:
        """Load a model file.

        Raises:
            CheckpointError: The file is missing or cannot be used.
            ConfigError: The device is not there.
        """
        model, header = load_checkpoint(os.fspath(path))
        return cls(model, header, device, precision)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the attention maps."""
        return self.model.encoder.grid_size

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def lanes(self) -> int:
        """How many batches may be computed at once.

        On a CPU several, each on its share of the cores: a search is made of operations too small
        to share among many.
        """
        return min(torch.get_num_threads(), _LANES) if self.device.type == "cpu" else 1

    @property
    def batch_size(self) -> int:
        """How many images to compute together, unless the caller chooses."""
        return BATCH_SIZE if self.device.type == "cpu" else _BATCH_SIZE_GPU

    @property
    def reads_in_processes(self) -> bool:
        """Whether it computes faster than threads of one process can read images."""
        return self.device.type == "cuda"

    def enter_lane(self, lanes: int) -> None:
        """Limit the calling thread to its share of the cores."""
        with _threads_lock:
            threads = torch.get_num_threads()
            torch.set_num_threads(max(1, threads // lanes))
            # That also set what threads to come start with: a thread of its own sets it back.
            other = threading.Thread(target=torch.set_num_threads, args=(threads,))
            other.start()
            other.join()

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Enter no_grad and mixed precision for encoding and searching."""
        with torch.no_grad(), autocast(self.device, self.precision):
            yield

    def features(self, pixels: np.ndarray) -> Grid:
        """Encode images to the grid of features (B, L, D): (B, S, S, 3) uint8.

        Raises:
            CaptionerError: The model is on a GPU, and this process was forked after it was loaded.
        """
        if self.device.type != "cpu" and os.getpid() != self._process:
            raise CaptionerError(
                f"a model on {self.device.type} cannot be used in a forked process: load it after "
                "the fork, or start processes with 'spawn'"
            )
        batch = torch.from_numpy(pixels)
        if self.device.type == "cuda":  # from there it is copied while the host goes on
            batch = batch.pin_memory()
        images = self.header.preprocess.normalize(batch.to(self.device, non_blocking=True))
        with torch.no_grad(), trunk_autocast(self.device, self.precision):
            grid: Grid = self.model.encoder(images)
        return grid

    def encode(self, pixels: np.ndarray) -> Memory:
        """Encode images: (B, S, S, 3) uint8 -> what the decoder reads."""
        with self.inference():
            return self.model.decoder.remember(self.features(pixels))

    def stepper(self, memory: Memory) -> TorchStepper:
        """Start to decode encoded images, one row each."""
        return TorchStepper(self.model.decoder, memory)

    def search(
        self, memory: Memory, options: DecodingOptions, keys: Sequence[int]
    ) -> Callable[[], list[list[Hypothesis]]] | None:
        """Prepare a search on a GPU, right after `encode`; see `captioner.backends.base.Backend`.

        It runs on a stream of its own, beside the encoder of the next batch.
        """
        stream = self._search_stream
        if stream is None or not supports(options, self.model.decoder.embed.num_embeddings):
            return None
        encoded = torch.cuda.current_stream(self.device).record_event()

        def search() -> list[list[Hypothesis]]:
            with torch.cuda.stream(stream), self.inference():
                stream.wait_event(encoded)
                for tensor in (memory.values, memory.keys):
                    tensor.record_stream(stream)  # its memory is not to be used again before
                return self._device_search.hypotheses(memory, options, keys)

        return search


def _after_fork() -> None:
    """Compute on one core: the threads that OpenMP would wait for stayed behind in the parent."""
    global _threads_lock
    _threads_lock = threading.Lock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
