"""Five small decoders, one for each kind of attention, on the CNN of the shipped model.

They ship as one file without that CNN: scripts/train_mechanisms.py makes it. All of them read the
same sentence, so that their maps of the same word can be compared. They need PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.api import DEFAULT_WEIGHTS, Captioner
from captioner.checkpoint import Header, header_from_document, load_checkpoint, load_weights
from captioner.config import to_dict
from captioner.errors import CheckpointError
from captioner.hub import WEIGHTS
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn

MECHANISMS = WEIGHTS / "mechanisms.safetensors"
_HEADER = "captioner_mechanisms"
_TRUNK = "encoder.backbone."

logger = logging.getLogger(__name__)


def available() -> bool:
    """Whether this installation has the decoders, and what they need."""
    return MECHANISMS.exists() and DEFAULT_WEIGHTS.exists() and find_spec("torch") is not None


@dataclass(frozen=True)
class Mechanism:
    """A decoder with one kind of attention.

    Attributes:
        kind: As in `AttentionConfig`.
        captioner: The decoder on the shared CNN.
        figures: What was measured of its maps.
    """

    kind: str
    captioner: Captioner
    figures: Mapping[str, float]


def save_mechanisms(
    target: Path, files: Mapping[str, Path], figures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write decoders into one file in half precision, without the CNN that they share.

    Args:
        target: Where.
        files: Their model files by kind, of one vocabulary and one CNN.
        figures: What was measured of each.

    Raises:
        CheckpointError: A file cannot be used, or they do not belong together.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    headers: dict[str, Header] = {}
    trunks = set()
    for kind, file in files.items():
        model, headers[kind] = load_checkpoint(file)
        trunks.add(_fingerprint(model.encoder.backbone))
        for name, tensor in load_weights(file).items():
            if not name.startswith(_TRUNK):
                tensors[f"{kind}.{name}"] = tensor.to(torch.float16)
    first = next(iter(headers.values()))
    if len(trunks) > 1 or any(h.vocabulary != first.vocabulary for h in headers.values()):
        raise CheckpointError("the decoders differ in their CNN or vocabulary")
    document = {
        "trunk": trunks.pop(),
        "vocabulary": first.vocabulary.to_list(),
        "preprocess": first.preprocess.to_dict(),
        "configs": {kind: to_dict(header.config) for kind, header in headers.items()},
        "record": dict(first.record),
        "figures": {kind: dict(values) for kind, values in figures.items()},
    }
    with replacing(target) as temporary:
        save_file(tensors, str(temporary), metadata={_HEADER: json.dumps(document)})


def load_mechanisms(path: Path | None = None, model: Path | None = None) -> list[Mechanism]:
    """Load the decoders on the CNN of a model file.

    Args:
        path: What `save_mechanisms` wrote; None takes the file of the package.
        model: The model file whose CNN they were trained on; None takes the shipped one.

    Raises:
        CheckpointError: A file is damaged, or the CNN is another one.
    """
    from safetensors import SafetensorError, safe_open

    from captioner.backends.torch import TorchBackend
    from captioner.models.caption_model import CaptionModel
    from captioner.models.fuse_bn import fuse_bn

    path, model = path or MECHANISMS, model or DEFAULT_WEIGHTS
    try:
        with safe_open(str(path), framework="numpy") as file:
            document = json.loads((file.metadata() or {})[_HEADER])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} holds no decoders: {error}") from None
    shipped, _ = load_checkpoint(model)
    backbone = shipped.encoder.backbone
    if _fingerprint(backbone) != document["trunk"]:
        raise CheckpointError(f"{path} was made for another CNN than that of {model}")
    whole = {_TRUNK + name: tensor for name, tensor in backbone.state_dict().items()}
    tensors = load_weights(path)
    trunk = _shared(fuse_bn(shipped).encoder.backbone)
    found = []
    for kind, config in document["configs"].items():
        header = header_from_document({**document, "config": config}, path)
        own = {
            name.removeprefix(kind + "."): tensor
            for name, tensor in tensors.items()
            if name.startswith(kind + ".")
        }
        if header.config.decoder.tied:
            own.setdefault("decoder.project.weight", own["decoder.embed.weight"])
        network = CaptionModel.from_weights(header.config, len(header.vocabulary), {**whole, **own})
        network.encoder.backbone = trunk
        backend = TorchBackend(network.eval(), header, "cpu", "fp32")
        backend.model.encoder.backbone = trunk
        captioner = Captioner.from_backend(backend)
        found.append(Mechanism(kind, captioner, document["figures"][kind]))
    return found


def load_or_log() -> list[Mechanism]:
    """Load the decoders of the package; if they cannot be used, log why and return none."""
    try:
        return load_mechanisms()
    except CheckpointError as error:
        logger.error("the tab Mechanisms shows nothing: %s", error)
        return []


def _fingerprint(backbone: nn.Module) -> str:
    """Return a hash of a CNN's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        values = tensor.detach().cpu().contiguous() + 0  # averaging makes 0 of -0
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _shared(trunk: nn.Module) -> Any:
    """Return a CNN that computes an image once, however many decoders ask for it in a row."""
    import torch

    class SharedTrunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self._last: tuple[Tensor, list[Tensor]] | None = None

        def forward(self, images: Tensor) -> list[Tensor]:
            last = self._last  # other threads may set it meanwhile
            if last is None or not torch.equal(last[0], images):
                self._last = last = (images, self.trunk(images))
            return last[1]

    return SharedTrunk()
