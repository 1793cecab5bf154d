"""Networks small enough to check exhaustively, and inputs for them.

Shapes: B photos, C captions per photo, T words, L locations, D feature size.
"""

from typing import get_args

import torch

from captioner.config import (
    AttentionConfig,
    AttentionKind,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
)
from captioner.models.decoder import Decoder
from captioner.models.encoder import Grid
from captioner.tokenizer import Vocabulary

MODEL = ModelConfig(
    encoder=EncoderConfig(
        name="timm/mobilenetv3_small_050", pretrained=False, image_size=64, width=16
    ),
    attention=AttentionConfig(size=8),
    decoder=DecoderConfig(embedding=12, hidden=16, dropout=0.0),
)
DECODERS = {
    **{f"{kind}": {"attention": {"kind": kind}} for kind in get_args(AttentionKind)},
    "see_word": {"attention": {"see_word": True}},
    "sparsemax": {"attention": {"normalizer": "sparsemax"}},
    "entmax15": {"attention": {"normalizer": "entmax15", "kind": "multi_head"}},
    "smooth": {"attention": {"smooth": True}},
    "smooth_heads": {"attention": {"smooth": True, "kind": "multi_head"}},
    "no_gate": {"gate": "off"},
    "channel_gate": {"gate": "channel"},
    "deep_output": {"deep_output": True},
    "tied": {"tied": True, "hidden": 6},
    "tied_deep": {"tied": True, "deep_output": True},
    "zero_state": {"initial_state": "zero"},
    "all": {
        "attention": {"kind": "multi_head", "see_word": True},
        "gate": "channel",
        "deep_output": True,
        "tied": True,
        "initial_state": "zero",
    },
}
"""Options of `make_decoder`: every kind of attention, and every option of the decoder."""
FEATURES = 8  # D
SIDE = 3  # of the grid


def shake(module, spread):
    """Random weights of this standard deviation: fresh ones hardly tell words or places apart."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, spread)


def make_decoder(words=9, *, seed=0, spread=0.5, attention=None, **options):
    """A random decoder in eval() without dropout; `words` counts the four specials too."""
    torch.manual_seed(seed)
    options = {"embedding": 6, "hidden": 10, "dropout": 0.0} | options
    attention = AttentionConfig(**({"size": 8, "heads": 2} | (attention or {})))
    decoder = Decoder(DecoderConfig(**options), attention, FEATURES, words)
    shake(decoder, spread)
    return decoder.eval()


def make_grid(photos, seed=0):
    """Random features of B photos."""
    generator = torch.Generator().manual_seed(seed)
    return Grid(torch.randn(photos, SIDE * SIDE, FEATURES, generator=generator), (SIDE, SIDE))


def make_captions(lengths, words=9, seed=0):
    """Random captions with these numbers of targets (B, C); 0 for an absent one."""
    lengths = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(seed)
    shape = (*lengths.shape, int(lengths.max()) + 1)
    captions = torch.randint(len(SPECIALS), words, shape, generator=generator)
    places = torch.arange(shape[-1])
    captions[places.expand(shape) == lengths[..., None]] = Vocabulary.END
    captions[places.expand(shape) > lengths[..., None]] = Vocabulary.PAD
    captions[..., 0] = Vocabulary.START
    captions[lengths == 0] = Vocabulary.PAD
    return captions, lengths


SPECIALS = (Vocabulary.PAD, Vocabulary.START, Vocabulary.END, Vocabulary.UNK)
