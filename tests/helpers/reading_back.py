"""Find operations that wait for a GPU: a CUDA graph can hold none of them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = (
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2",
    "aten.unique_dim", "aten.lift_fresh", "aten.bincount", "aten.multinomial", "aten.equal",
)  # fmt: skip


class ReadsNothingBack(TorchDispatchMode):
    """Fail where the block reads a value back, or makes a tensor of Python numbers.

    All of it is found on a CPU too, because each has an operation of its own; indexing by a mask is
    found by the type of the index.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        assert name not in _WAITING, f"{name} waits for the device"
        if name in ("aten.index", "aten.index_put", "aten.index_put_", "aten._unsafe_index_put"):
            for index in args[1]:
                mask = index is not None and index.dtype == torch.bool
                assert not mask, f"{name} by a mask waits for the device"
        return func(*args, **(kwargs or {}))
