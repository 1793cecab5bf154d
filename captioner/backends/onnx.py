"""The onnx backend: a model's exported graphs, run by ONNX Runtime without PyTorch.

An export is one `.safetensors` file: the header of a model file, and two ONNX graphs as byte
tensors. `encoder` computes what a search needs of the images, `step` advances the decoder by one
word. The graphs hold standard operators and their own weights only, which is checked before
the runtime sees them: they name no other file and no code.

Shapes: B images, K rows per image, S side of the encoder's square, L locations, D feature size,
A attention size, H_d hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from captioner.backends.base import BATCH_SIZE
from captioner.backends.onnx_check import check_graph
from captioner.checkpoint import Header, header_from_document, read_document
from captioner.errors import CheckpointError
from captioner.utils.device import default_threads

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from captioner.decoding.options import DecodingOptions

ENCODER_INPUTS = ("pixels",)
ENCODER_OUTPUTS = ("values", "keys", "hidden", "cell")
STEP_INPUTS = ("words", "hidden", "cell", "values", "keys")
STEP_OUTPUTS = ("log_probs", "attention", "next_hidden", "next_cell")
_GRAPHS = {"encoder": (ENCODER_INPUTS, ENCODER_OUTPUTS), "step": (STEP_INPUTS, STEP_OUTPUTS)}
_MAX_LANES = 4
_TOGETHER = 2  # images per thread that the encoder computes at once
_ENDING = ".onnx.safetensors"

# ONNX Runtime 1.32 and later report their use to Microsoft from a thread, which reads this when it
# is first imported. Nothing here goes out unasked; and a forked child could never end: at its exit
# it would wait for that thread, which stayed behind in the parent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logger = logging.getLogger(__name__)


class OnnxMemory(NamedTuple):
    """What the decoder needs of B images.

    Attributes:
        values: (B, L, D) fp32, what is read at each location.
        keys: (B, L, A) fp32, what queries are compared with.
        hidden, cell: (B, H_d) fp32, the LSTM's state before the first word.
    """

    values: np.ndarray
    keys: np.ndarray
    hidden: np.ndarray
    cell: np.ndarray


class OnnxBackend:
    """An exported model.

    It may be used in a forked process: the threads of a session stay behind in the parent, so the
    child makes sessions of its own when it first computes.

    Args:
        path: The export.
        threads: Threads that compute; None takes OMP_NUM_THREADS, or one per core.

    Raises:
        CheckpointError: The file is missing, damaged, not an export or not safe to run, or ONNX
            Runtime is not installed.
    """

    name = "onnx"
    batch_size = BATCH_SIZE
    reads_in_processes = False

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        contents = _read(Path(path))
        self.header, self.grid = contents.header, contents.grid
        self.parameters = contents.parameters
        self.threads = threads or default_threads()
        self._path = Path(path).absolute()
        self._digests = contents.digests
        self._lock = threading.Lock()
        self._sessions = {1: self._start(contents.graphs)}  # by lanes that share the threads
        _backends.add(self)

    @property
    def lanes(self) -> int:
        """How many batches may be computed at once, each in a thread of its own."""
        return min(self.threads, _MAX_LANES)

    def enter_lane(self, lanes: int) -> None:
        """Let the calling thread use sessions of their own, with its share of the threads.

        Lanes that share all threads wait for each other at the end of every operator.
        """
        _lane.count = lanes

    def inference(self) -> AbstractContextManager[object]:
        """Return a context that does nothing: the precision is fixed in the graphs."""
        return contextlib.nullcontext()

    def encode(self, pixels: np.ndarray) -> OnnxMemory:
        """Encode images: (B, S, S, 3) uint8.

        A few at a time: the activations of many take memory and do not fit into the caches.
        """
        session = self._session("encoder")
        count = _TOGETHER * session.get_session_options().intra_op_num_threads
        parts = [
            session.run(
                ENCODER_OUTPUTS, {"pixels": np.ascontiguousarray(pixels[start : start + count])}
            )
            for start in range(0, max(1, len(pixels)), count)
        ]
        if len(parts) == 1:
            return OnnxMemory(*parts[0])
        return OnnxMemory(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def stepper(self, memory: OnnxMemory) -> OnnxStepper:
        """Start to decode encoded images, with one row each."""
        return OnnxStepper(self._session("step"), memory, self.grid)

    def search(self, memory: OnnxMemory, options: DecodingOptions, keys: Sequence[int]) -> None:
        """Leave searches to those that drive `stepper`."""

    def _start(self, graphs: dict[str, bytes], lanes: int = 1) -> dict[str, InferenceSession]:
        threads = max(1, self.threads // lanes)
        return {name: _session(self._path, name, graphs.pop(name), threads) for name in _GRAPHS}

    def _session(self, name: str) -> InferenceSession:
        lanes = getattr(_lane, "count", 1)
        with self._lock:
            if lanes not in self._sessions:  # the first lane, or forked
                self._sessions[lanes] = self._load_again(lanes)
            return self._sessions[lanes][name]

    def _load_again(self, lanes: int) -> dict[str, InferenceSession]:
        try:
            contents = _read(self._path)
            if contents.digests != self._digests:
                raise CheckpointError(
                    f"{self._path} has changed since the parent process loaded it: load the model "
                    "in each process"
                )
            return self._start(contents.graphs, lanes)
        except CheckpointError:
            if 1 in self._sessions:  # lanes can do with what was loaded
                return self._sessions[1]
            raise

    def _leave_sessions(self) -> None:
        """Do without the sessions of the parent process: called in a forked child."""
        self._lock = threading.Lock()
        for sessions in self._sessions.values():
            for session in sessions.values():
                # To free it, also when Python ends, would wait for its threads, which are not here.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._sessions = {}


_lane = threading.local()
"""`count`: how many threads like this one compute at once; unset outside of lanes."""

_backends: weakref.WeakSet[OnnxBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in _backends:
        backend._leave_sessions()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class OnnxStepper:
    """A decoder that runs over K rows of each of B images; see `captioner.backends.base`."""

    def __init__(self, session: InferenceSession, memory: OnnxMemory, grid: tuple[int, int]):
        self._session = session
        self._values, self._keys = memory.values, memory.keys
        self._hidden, self._cell = memory.hidden[:, None], memory.cell[:, None]  # (B, K, H_d)
        self.grid = grid

    @property
    def images(self) -> int:
        """B, the images that are still searched."""
        return len(self._values)

    def step(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Feed the previous words (B, K): log-probabilities (B, K, V), attention (B, K, L)."""
        feeds = {
            "words": np.ascontiguousarray(words, dtype=np.int64),
            "hidden": self._hidden,
            "cell": self._cell,
            "values": self._values,
            "keys": self._keys,
        }
        log_probs, attention, self._hidden, self._cell = self._session.run(STEP_OUTPUTS, feeds)
        return log_probs, attention

    def reorder(self, parents: np.ndarray) -> None:
        """Let row k of each image continue its row `parents[:, k]`: (B, K')."""
        images = np.arange(len(parents))[:, None]
        self._hidden, self._cell = self._hidden[images, parents], self._cell[images, parents]

    def keep(self, images: np.ndarray) -> None:
        """Go on with some of the images only: their indices (B',)."""
        self._values, self._keys = self._values[images], self._keys[images]
        self._hidden, self._cell = self._hidden[images], self._cell[images]


def export_path(model: Path) -> Path:
    """Return where the export of a model file lies: beside it, ending in .onnx.safetensors."""
    return model.with_name(f"{model.name.removesuffix('.safetensors')}{_ENDING}")


def find_export(model: Path) -> Path | None:
    """Find the graphs that a model can be run with.

    Args:
        model: A model file, or an export.

    Returns:
        `model` itself if it is an export; else the export beside it, if it was made of this very
        file (or the model file is not installed); else None.

    Raises:
        CheckpointError: `model` is damaged or not of captioner.
    """
    if model.exists() and "export" in read_document(model):
        return model
    beside = export_path(model)
    if not beside.exists():
        return None
    try:
        section = read_document(beside).get("export") or {}
    except CheckpointError as error:
        logger.warning("%s; it is left out", error)
        return None
    if not model.exists() or section.get("source") == file_digest(model):
        return beside
    logger.warning(
        "%s was made of another version of %s: it is left out; captioner export %s renews it",
        beside,
        model.name,
        model,
    )
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as an export's header names the model that it was made of."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Contents(NamedTuple):
    """What is in an export: header, (H, W) of its maps, number of weights, graphs by name.

    `digests` has the SHA-256 of each graph.
    """

    header: Header
    grid: tuple[int, int]
    parameters: int
    graphs: dict[str, bytes]
    digests: dict[str, str]


def _read(path: Path) -> _Contents:
    """Read an export and check it."""
    from safetensors import SafetensorError, safe_open

    document = read_document(path)
    section = document.get("export")
    if section is None:
        raise CheckpointError(
            f"{path} has weights for PyTorch, no graphs for ONNX Runtime: run 'captioner export'"
        )
    graphs = {}
    try:
        height, width = map(int, section["grid"])
        parameters = int(section["parameters"])
        expected = {name: section["sha256"][name] for name in _GRAPHS}
        with safe_open(str(path), framework="numpy") as file:
            for name in _GRAPHS:
                graphs[name] = file.get_tensor(name).tobytes()
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged export: {error}") from None
    for name, graph in graphs.items():
        if hashlib.sha256(graph).hexdigest() != expected[name]:
            raise CheckpointError(
                f"{path}: the {name} graph is not the one that was exported (its SHA-256 differs): "
                "export the model again"
            )
        check_graph(graph, f"{path}: the {name} graph")
    header = header_from_document(document, path)
    return _Contents(header, (height, width), parameters, graphs, expected)


def _session(path: object, name: str, graph: bytes, threads: int) -> InferenceSession:
    """Start ONNX Runtime on a graph."""
    try:
        import onnxruntime
    except ImportError:
        raise CheckpointError(
            "the onnx backend needs ONNX Runtime: pip install 'captioner[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Threads that wait for work must not take the core from those of another batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has its own classes of error, all of Exception
        raise CheckpointError(f"{path}: ONNX Runtime refuses the {name} graph: {error}") from None
    inputs, outputs = _GRAPHS[name]
    found = {each.name for each in session.get_inputs()}, {e.name for e in session.get_outputs()}
    if found != (set(inputs), set(outputs)):
        raise CheckpointError(f"{path}: the {name} graph has other inputs or outputs than it must")
    return session
