"""Searches that stay on the device from the first word to the last.

They give what `captioner.decoding` gives, for the options that `supports` names; the search on the
host serves all others, and every other backend.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from captioner.backends.torch_beam import DeviceBeams
from captioner.backends.torch_sampling import DeviceSampling, Drawn
from captioner.decoding.constraints import check_vocabulary
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import DecodingOptions
from captioner.models.attention import Memory
from captioner.models.decoder import Decoder

_KEPT = 4  # kinds of search whose tensors and graph stay on the device
_SPARE = 4  # a batch may use the tensors of one that was up to this many times as large


def supports(options: DecodingOptions, vocabulary: int) -> bool:
    """Whether a search with these options, in a vocabulary of this size, can stay on the device.

    Raises:
        ConfigError: The options do not fit the vocabulary.
    """
    constrained = options.required or options.prefix_ids or options.no_repeat_ngram
    simple = not constrained and options.groups == 1 and not options.alternatives
    return simple and not check_vocabulary(options, vocabulary)


@dataclass
class _Search:
    """A search that is ready for a batch.

    Attributes:
        kind: Of options and memory that it is for.
        search: With its tensors.
        used: Whether it has run.
    """

    kind: tuple[object, ...]
    search: DeviceBeams | DeviceSampling
    used: bool = False


class DeviceSearch:
    """Searches with one decoder, whose tensors and CUDA graphs are kept from batch to batch.

    The first batch of a kind runs step by step; on a GPU, its step is captured before the second.
    The decoder's weights may change in place. Threads take turns.

    Args:
        decoder: In `eval()` whenever it is used; it may train in between.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._lock = threading.Lock()
        self._searches: list[_Search] = []  # those used last come last

    @torch.no_grad()
    def hypotheses(
        self, memory: Memory, options: DecodingOptions, keys: Sequence[int] = ()
    ) -> list[list[Hypothesis]]:
        """Return what `beam_search` or, with `options.sample`, `sample` returns.

        Args:
            memory: Of B images, on the decoder's device.
            options: That `supports` allows.
            keys: One number per image for `sample`.

        Raises:
            ConfigError: The options do not fit the vocabulary.
        """
        with self._lock:
            kind = DeviceSampling if options.sample else DeviceBeams
            search, steps = self._run(kind, memory, options, keys)
            return search.hypotheses(len(memory.values), steps)

    @torch.no_grad()
    def draw(self, memory: Memory, options: DecodingOptions, keys: Sequence[int] = ()) -> Drawn:
        """Write `options.candidates` sentences per image that stay on the device.

        With `options.sample` they are drawn, and the same as those of
        `captioner.decoding.sampling.sample`; without, there is one per image, which takes the
        likeliest word at each step as `greedy_search` does. `Drawn.words` (B, N, T) has
        T = `options.max_length` + 1 and belongs to the caller. The host waits for nothing but
        whether all sentences have ended, two steps late.

        Args:
            memory: Of B images, on the decoder's device.
            options: That `supports` allows.
            keys: One number per image, with which `options.seed` selects its random stream; unused
                without `options.sample`.

        Raises:
            ConfigError: The options do not fit the vocabulary.
        """
        with self._lock:
            search, _ = self._run(DeviceSampling, memory, options, keys)
            assert isinstance(search, DeviceSampling)
            return search.drawn(len(memory.values))

    def _run(
        self,
        kind: type[DeviceBeams | DeviceSampling],
        memory: Memory,
        options: DecodingOptions,
        keys: Sequence[int],
    ) -> tuple[DeviceBeams | DeviceSampling, int]:
        """Return the search after its last step, and how many steps there were."""
        ready = self._ready(kind, memory, options)
        search = ready.search
        if ready.used and memory.values.device.type == "cuda":
            search.rows.time.zero_()  # the steps of the capture write where the last batch stopped
            search.repeated.capture()
        ready.used = True
        if isinstance(search, DeviceSampling):
            search.load(memory, options, keys)
        else:
            search.load(memory)
        return search, search.repeated.run()

    def _ready(
        self,
        kind: type[DeviceBeams | DeviceSampling],
        memory: Memory,
        options: DecodingOptions,
    ) -> _Search:
        device, images = memory.values.device, len(memory.values)
        autocast = torch.is_autocast_enabled(device.type)
        key = (
            kind,
            repr(replace(options, seed=0)),
            autocast and torch.get_autocast_dtype(device.type),
            *((each.dtype, each.shape[1:], each.device) for each in (memory.values, memory.keys)),
            # A graph has the addresses of the weights.
            *(parameter.data_ptr() for parameter in self._decoder.parameters()),
        )
        found = [
            each
            for each in self._searches
            if each.kind == key and images <= each.search.rows.capacity <= _SPARE * images
        ]
        ready = found[0] if found else _Search(key, kind(self._decoder, memory, options))
        self._searches = [each for each in self._searches if each is not ready][1 - _KEPT :]
        self._searches.append(ready)
        return ready
