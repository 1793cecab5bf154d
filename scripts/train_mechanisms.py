"""Train the small decoders of the demo's tab "Mechanisms", one for each kind of attention.

    python scripts/train_mechanisms.py FOLDER                        # all that is missing
    python scripts/train_mechanisms.py FOLDER --set optim.epochs=1   # other settings of the recipe

FOLDER holds flickr8k/ and coco/ (see configs/flickr8k.yaml). Each decoder is a `captioner train` of
configs/flickr8k_mechanisms.yaml on the features of the shipped model's CNN, which are computed
once. Then their attention is measured against the outlines of COCO's objects, as in
docs/attention.md; all five go into one file, without the CNN that they share with the shipped
model, and the figures into the file and into docs/mechanisms.md. What is done is skipped, an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from attention_figures import outlined_photos, table

from captioner.api import DEFAULT_WEIGHTS
from captioner.backends.torch import TorchStepper
from captioner.checkpoint import Header, load_checkpoint, save_checkpoint
from captioner.config import AttentionKind, Config, load_config
from captioner.decoding.beam_search import beam_search
from captioner.decoding.options import DecodingOptions
from captioner.demo.mechanisms import MECHANISMS, save_mechanisms
from captioner.evaluation.attention import AttentionMeasure
from captioner.evaluation.masks import CocoInstances
from captioner.models.caption_model import CaptionModel
from captioner.training.data import build_datasets, build_vocabulary, read_examples
from captioner.utils.files import replacing

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "flickr8k_mechanisms.yaml"
PAGE = ROOT / "docs" / "mechanisms.md"
BEGIN, END = "<!-- figures: begin", "<!-- figures: end -->"
KINDS = get_args(AttentionKind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds flickr8k/ and coco/")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "flickr8k_mechanisms")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--target", type=Path, default=MECHANISMS, help="the file to write")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/mechanisms.md")
    arguments = parser.parse_args()
    configs = {
        kind: load_config(RECIPE, overrides(kind, arguments.folder, arguments.runs, arguments.set))
        for kind in KINDS
    }
    for kind, config in configs.items():
        train(kind, config, overrides(kind, arguments.folder, arguments.runs, arguments.set))
    figures = {}
    for kind, config in configs.items():
        path = Path(config.out) / "figures.json"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(measure(config)), encoding="utf-8")
        figures[kind] = json.loads(path.read_text(encoding="utf-8"))
    files = {kind: Path(config.out) / "best.safetensors" for kind, config in configs.items()}
    save_mechanisms(arguments.target, files, figures)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")
    write_page(arguments.page, figures)


def overrides(kind: str, folder: Path, runs: Path, settings: list[str]) -> list[str]:
    """Return what changes in the recipe for a kind of attention."""
    return [
        f"data.root={folder}",
        f"out={runs / kind}",
        f"init={runs / f'start-{kind}.safetensors'}",
        f"data.cache={runs / 'cache'}",
        f"model.attention.kind={kind}",
        *settings,
    ]


def train(kind: str, config: Config, changed: list[str]) -> None:
    """Train one decoder, unless that is done."""
    run = Path(config.out)
    if (run / "finished").exists():
        return
    print(f"== {kind}", file=sys.stderr)
    if not Path(config.init or "").exists():
        write_start(config)
    command = [sys.executable, "-m", "captioner", "train", str(RECIPE), *changed]
    command += ["--resume"] if (run / "last").exists() else []
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"{run} failed or was stopped; the same command goes on")
    (run / "finished").touch()


def write_start(config: Config) -> None:
    """Write the model that training starts from: the shipped CNN, all else random."""
    shipped, header = load_checkpoint(DEFAULT_WEIGHTS)
    examples, _ = read_examples(config.data, 1)
    vocabulary = build_vocabulary(examples, config.data.min_count)
    torch.manual_seed(config.seed)
    model = CaptionModel(config.model, len(vocabulary), pretrained=False)
    model.encoder.backbone.load_state_dict(shipped.encoder.backbone.state_dict())
    assert config.init is not None
    start = Header(config=config.model, vocabulary=vocabulary, preprocess=header.preprocess)
    save_checkpoint(config.init, start, model.state_dict())


@torch.inference_mode()
def measure(config: Config) -> dict[str, Any]:
    """Return the measures of a decoder's maps for its own captions of COCO's outlined photos.

    All of these photos are in the training and validation sets, so their features are there.
    """
    model, header = load_checkpoint(Path(config.out) / "best.safetensors")
    assert config.init is not None
    encoder = load_checkpoint(config.init)[0].encoder  # the features are known by its weights
    train, val = read_examples(config.data, config.validation.limit)
    data = build_datasets(
        config, train, val, encoder, header.vocabulary, header.preprocess, torch.device("cpu")
    )
    instances, outlined = outlined_photos(Path(config.data.root) / "coco", None)
    wanted = {Path(example.image).resolve() for example in outlined}  # ids are COCO's alone
    report = AttentionMeasure(CocoInstances(*instances))
    options = DecodingOptions(beam=config.validation.beam)
    for examples, cache in ((train, data.train.cache), (val, data.val_cache)):
        assert cache is not None
        images = [Path(example.image).resolve() for example in examples]
        rows = [row for row, image in enumerate(images) if image in wanted]
        for row in rows:
            stages = [stage.float() for stage in cache.read_batch([row])]
            memory = model.decoder.remember(model.encoder.forward_neck(stages))
            ((best, *_),) = beam_search(TorchStepper(model.decoder, memory), options)
            words = header.vocabulary.decode(best.words)
            maps = best.attention.reshape(-1, *memory.size)
            report.add(int(examples[row].image_id), words, maps)
    found = report.report()
    figures = {key: round(found.figure(key), 3) for key in ("ratio", "pointing_gain", "entropy")}
    return {**figures, "words": found.named.words, "photos": found.images_measured}


def write_page(page: Path, figures: dict[str, dict[str, Any]]) -> None:
    """Put the table into the page."""
    rows = [
        [f"`{kind}`", f"{f['ratio']:.2f}", f"{f['pointing_gain']:+.1f}", f"{f['entropy']:.3f}"]
        for kind, f in figures.items()
    ]
    heads = ["kind", "correctness × uniform", "pointing above centre", "entropy"]
    photos = max(f["photos"] for f in figures.values())
    text = f"{table(heads, rows)}\n\nMeasured on {photos} photos of COCO."
    pattern = re.compile(rf"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    with replacing(page) as temporary:
        temporary.write_text(
            pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old), encoding="utf-8"
        )
    print(text)


if __name__ == "__main__":
    main()
