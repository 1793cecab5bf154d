"""Precision: bf16 where it is faster, but not in the trunk unless asked for."""

import pytest
import torch

from captioner.utils import device
from captioner.utils.device import autocast, trunk_autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("context", "fast", "precision", "dtype"),
    [
        (autocast, True, "auto", torch.bfloat16),
        (autocast, False, "auto", torch.float32),
        (autocast, True, "fp32", torch.float32),
        (autocast, False, "bf16", torch.bfloat16),
        (trunk_autocast, True, "auto", torch.float32),
        (trunk_autocast, True, "bf16", torch.bfloat16),
        (trunk_autocast, True, "fp32", torch.float32),
    ],
)
def test_precision_of_products(monkeypatch, context, fast, precision, dtype):
    monkeypatch.setattr(device, "fast_bf16", lambda _: fast)
    values = torch.ones(2, 2)
    with context(CPU, precision):
        assert (values @ values).dtype == dtype
