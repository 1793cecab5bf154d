"""Training steps as CUDA graphs: thousands of small operations, launched at once.

A step of the decoder is a recurrence of many small operations, and to launch each of them from
Python takes longer than to compute it. A CUDA graph is recorded once for every shape of a batch and
then launched as a whole. It reads from buffers of its own, which the next batch is copied into.

The first visits of a shape run operation by operation, from the same buffers, and are ordinary
steps of the training: they are the warm-up that a capture needs (lazily made states of the
optimizer, workspaces of cuBLAS and cuDNN). A capture computes nothing.

- *Memory.* All graphs share one pool: they run one after the other, and each writes its
  intermediate results before it reads them. What lives longer (weights, states of the optimizer,
  averaged weights) was allocated outside. Gradients are set to None at the beginning of a step, so
  every graph has its own, in the pool.
- *Random numbers.* Dropout and scheduled sampling draw from CUDA's default generator, which
  `torch.cuda.graph` registers by itself: a launch takes the generator's current state and moves it
  on as the operations would have done, so resuming stays exact.
- *What changes from step to step* (learning rate, weight of the average, number of the step) is
  read from tensors that are filled before the launch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.data.caption_batch import CaptionBatch

logger = logging.getLogger(__name__)

_WARMUPS = 2  # visits of a shape before it is captured

Compute = Callable[[CaptionBatch, Tensor, int], Tensor]


@dataclass
class _Shape:
    """What belongs to one shape of a batch: buffers and, from the third visit on, the graph."""

    inputs: CaptionBatch
    visits: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    values: Tensor | None = None


class StepGraphs:
    """Runs a function of a batch as one CUDA graph per shape of the batch.

    On a CPU the function runs from the same buffers without a graph, which is how this is tested.

    Args:
        compute: Takes a batch, the number of the step as a tensor (), and the number of parts;
            returns values (N,). It must read nothing back from the device.
        device: Of the batches.
    """

    def __init__(self, compute: Compute, device: torch.device):
        self._compute = compute
        self._device = device
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._shapes: dict[object, _Shape] = {}
        self._captures = device.type == "cuda"
        if self._captures:
            with torch.cuda.device(device):
                self._stream = torch.cuda.Stream()
                self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: CaptionBatch, step: int, parts: int) -> Tensor:
        """Run the function on a batch, which is copied."""
        key = batch.shapes
        if key not in self._shapes:
            self._shapes[key] = _Shape(batch.map(torch.empty_like))
        shape = self._shapes[key]
        shape.inputs.copy_(batch)
        self._step.fill_(step)
        if not self._captures:
            return self._compute(shape.inputs, self._step, parts)
        with torch.cuda.device(self._device):
            if shape.graph is None and shape.visits >= _WARMUPS:
                self._capture(shape, parts)
            if shape.graph is None or shape.values is None:
                shape.visits += 1
                return self._run(shape, parts)
            shape.graph.replay()
            return shape.values.clone()  # the next launch writes there again

    @property
    def captured(self) -> int:
        """Return how many graphs there are."""
        return sum(shape.graph is not None for shape in self._shapes.values())

    def _run(self, shape: _Shape, parts: int) -> Tensor:
        """Run operation by operation, on the stream on which graphs are captured."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            values = self._compute(shape.inputs, self._step, parts)
        current.wait_stream(self._stream)
        values.record_stream(current)
        return values

    def _capture(self, shape: _Shape, parts: int) -> None:
        """Record the graph of a shape; if that does not work, give graphs up."""
        random, caller = torch.cuda.get_rng_state(self._device), torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loader's thread may pin memory meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                values = self._compute(shape.inputs, self._step, parts)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                "a training step cannot be captured as a CUDA graph (%s): going on without graphs",
                reason,
            )
            self._captures = False
            torch.cuda.set_stream(caller)  # a capture that cannot be ended does not leave its own
            with contextlib.suppress(RuntimeError):
                torch.cuda.set_rng_state(random, self._device)
            return
        shape.graph, shape.values = graph, values
        logger.debug("captured a training step for %s", shape.inputs.shapes)
