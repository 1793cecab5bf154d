"""Decoders with every kind of attention on the CNN of one tiny model."""

from dataclasses import replace

import torch

from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.demo.mechanisms import save_mechanisms
from captioner.models.caption_model import CaptionModel
from helpers.tiny import MODEL, shake
from helpers.tiny_files import save_model

KINDS = ("additive", "dot", "general", "scaled_dot", "multi_head")


def save_decoders(folder):
    """Write `model.safetensors`, a decoder of each kind on its CNN, and `all.safetensors`."""
    shipped, header = load_checkpoint(save_model(folder / "model.safetensors"))
    for seed, kind in enumerate(KINDS):
        config = replace(
            MODEL,
            attention=replace(MODEL.attention, kind=kind, heads=2),
            decoder=replace(MODEL.decoder, embedding=16, tied=kind == "dot"),
        )
        torch.manual_seed(seed)
        model = CaptionModel(config, len(header.vocabulary))
        shake(model.decoder, 0.5)
        model.decoder.tie()
        model.encoder.backbone.load_state_dict(shipped.encoder.backbone.state_dict())
        save_checkpoint(
            folder / f"{kind}.safetensors", replace(header, config=config), model.state_dict()
        )
    files = {kind: folder / f"{kind}.safetensors" for kind in KINDS}
    figures = {kind: {"ratio": 1.5 + i, "pointing_gain": -2.0} for i, kind in enumerate(KINDS)}
    save_mechanisms(folder / "all.safetensors", files, figures)
    return folder
