"""Attention: weights are a distribution, normalisers equal their definition, keys are made once."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.searches import beam_search, greedy_search
from helpers.tiny import FEATURES, SIDE, make_captions, make_decoder, make_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.config import AttentionConfig, AttentionKind
from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError
from captioner.models import additive_attention as additive
from captioner.models.additive_attention import additive_score
from captioner.models.attention import Attention
from captioner.models.normalizers import normalize

KINDS = get_args(AttentionKind)
NORMALIZERS = ["softmax", "sparsemax", "entmax15"]


def make_attention(kind, normalizer="softmax"):
    torch.manual_seed(0)
    config = AttentionConfig(kind=kind, normalizer=normalizer, size=8, heads=2)
    return Attention(config, FEATURES, 5)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_weights_are_a_distribution(kind, normalizer, scale):
    attention = make_attention(kind, normalizer)
    memory = attention.remember(make_grid(3).features * scale, (SIDE, SIDE))
    context, weights, _ = attention(torch.randn(3, 4, 5) * scale, memory)
    assert context.shape == (3, 4, FEATURES)
    assert weights.shape == (3, 4, SIDE * SIDE)
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "multi_head"])
def test_context_is_the_weighted_sum_of_what_is_there(kind):
    attention, grid = make_attention(kind), make_grid(2)
    context, weights, _ = attention(torch.randn(2, 3, 5), attention.remember(*grid))
    naive = (weights[..., None] * grid.features[:, None]).sum(2)
    torch.testing.assert_close(context, naive)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_formula(kind):
    """One photo, one query, one location at a time, as the table in the class says."""
    attention, grid, query = make_attention(kind), make_grid(2), torch.randn(2, 3, 5)
    _, weights, _ = attention(query, attention.remember(*grid))
    heads = 2 if kind == "multi_head" else 1
    for photo in range(2):
        for row in range(3):
            q = attention.query(query[photo, row])
            maps = []
            for h in range(heads):
                scores = []
                for features in grid.features[photo]:
                    k = attention.key(features)
                    if kind == "additive":
                        scores.append(attention.score @ torch.tanh(k + q))
                    elif kind == "multi_head":
                        part = slice(4 * h, 4 * h + 4)
                        scores.append(k[part] @ q[part] / math.sqrt(4))
                    else:
                        scores.append(k @ q / (math.sqrt(8) if kind == "scaled_dot" else 1))
                maps.append(torch.stack(scores).softmax(0))
            torch.testing.assert_close(weights[photo, row], torch.stack(maps).mean(0))


def bisected(scores, normalizer):
    """Sparsemax or 1.5-entmax in float64: the threshold at which the weights sum to 1."""
    z = np.asarray(scores, dtype=np.float64)
    power = {"sparsemax": 1, "entmax15": 2}[normalizer]
    z = z / power
    low, high = z.max() - 1.0, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        if (np.maximum(z - middle, 0) ** power).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(z - (low + high) / 2, 0) ** power


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.sampled_from(["sparsemax", "entmax15"]),
)
def test_sparse_normalizers_equal_bisection(scores, normalizer):
    weights = normalize(torch.tensor(scores), normalizer).numpy()
    np.testing.assert_allclose(weights, bisected(scores, normalizer), atol=2e-4)
    precise = normalize(torch.tensor(scores, dtype=torch.float64), normalizer).numpy()
    np.testing.assert_allclose(precise, bisected(scores, normalizer), atol=1e-6)


@pytest.mark.parametrize("normalizer", ["sparsemax", "entmax15"])
def test_sparse_normalizers_give_exact_zeros_and_keep_the_order(normalizer):
    scores = torch.tensor([[3.0, 1.0, 2.9, -4.0], [0.5, 0.5, 0.5, 0.5]])
    weights = normalize(scores, normalizer)
    assert weights[0, 3] == 0
    assert weights[0, 0] > weights[0, 2] > weights[0, 1]
    torch.testing.assert_close(weights[1], torch.full((4,), 0.25))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_normalizer_gradients(normalizer):
    torch.manual_seed(0)
    scores = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: normalize(x, normalizer), scores)


@pytest.mark.parametrize("block", [1, 2**18], ids=["photo-by-photo", "at-once"])
def test_additive_score_equals_the_naive_formula_with_its_gradients(monkeypatch, block):
    monkeypatch.setattr(additive, "_BLOCK", block)
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 4, 5), (5,))
    mine = [torch.randn(shape, requires_grad=True) for shape in shapes]
    naive = [tensor.detach().clone().requires_grad_() for tensor in mine]
    query, keys, weight = naive
    expected = torch.tanh(keys[:, None] + query[:, :, None]) @ weight  # (B, C, L)
    got = additive_score(*mine)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(expected)
    got.backward(upstream)
    expected.backward(upstream)
    for one, other in zip(mine, naive, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_additive_score_gradcheck():
    torch.manual_seed(0)
    shapes = ((2, 3, 4), (2, 5, 4), (4,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(additive_score, inputs)


def test_additive_score_stays_in_fp32_under_autocast():
    attention, grid = make_attention("additive"), make_grid(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = attention.remember(*grid)
        _, weights, _ = attention(torch.randn(2, 3, 5), memory)
    assert memory.keys.dtype == torch.float32
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_computed_once(kind):
    """Per batch, not per step: in training, greedy and beam search alike."""
    decoder = make_decoder(attention={"kind": kind})
    calls = []
    decoder.attention.key.register_forward_hook(lambda *_: calls.append(1))
    captions, lengths = make_captions([[6, 3], [4, 0]])
    decoder(decoder.remember(make_grid(2)), captions, lengths)
    assert len(calls) == 1
    memory = decoder.remember(make_grid(2))
    calls.clear()
    greedy_search(decoder, memory, DecodingOptions(min_length=4))
    beam_search(decoder, memory, DecodingOptions(beam=3, min_length=4))
    assert not calls


def test_heads_must_divide_the_sizes():
    with pytest.raises(ConfigError, match=r"attention\.heads=3"):
        Attention(AttentionConfig(kind="multi_head", size=8, heads=3), FEATURES, 5)
