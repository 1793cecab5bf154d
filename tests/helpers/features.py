"""Features of a single image out of a cache."""

import numpy as np
import torch

from captioner.data.feature_cache import FeatureCache


def read_one(cache: FeatureCache, index: int, view: int = 0) -> list[np.ndarray]:
    """Return the stages of one image, (C, H, W) each; bf16 as fp32, since NumPy has no bf16."""
    stages = [stage[0] for stage in cache.read_batch([index], [view])]
    return [(s.float() if s.dtype == torch.bfloat16 else s).numpy() for s in stages]
