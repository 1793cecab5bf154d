"""Every recipe in configs/ loads, trains a step and captions; the parts of a series fit together.

The networks are the recipes' own, without pretrained weights and on small drawn pictures. Where
several recipes share a large CNN, only the first builds it.
"""

import dataclasses
import itertools
from pathlib import Path

import pytest
from pictures import write_pictures

from captioner.config import load_config
from captioner.training.trainer import Trainer
from captioner.training.validation import validate

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SMALLER = {
    "coco_resnet101_finetune": "torchvision/resnet18",
    "coco_resnet101_scst": "torchvision/resnet18",
    "paper_hard": "torchvision/vgg11",
}
SERIES = [
    ("flickr8k", "flickr8k_finetune", "flickr8k_scst"),
    ("coco_resnet101", "coco_resnet101_finetune", "coco_resnet101_scst"),
]


@pytest.mark.parametrize(
    "path",
    [
        # VGG-19 with 1,800 hidden units takes ten seconds.
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * path.stem.startswith("paper"))
        for path in RECIPES
    ],
)
def test_a_recipe_trains_a_step_and_captions(tmp_path, path):
    write_pictures(tmp_path, 4, captions=2)
    overrides = {
        "out": tmp_path / "run",
        "init": "null",
        "device": "cpu",
        "model.encoder.pretrained": "false",
        "model.encoder.image_size": 64,
        "data.root": tmp_path,
        "data.train": "[{captions: captions.json}]",
        "data.val": "[{captions: captions.json}]",
        "data.cache": tmp_path / "cache",
        "data.min_count": 1,
        "data.batch_size": 4,
        "data.workers": 0,
        "optim.precision": "fp32",
        "validation.beam": 2,
        "validation.max_length": 4,
    }
    if path.stem in SMALLER:
        overrides["model.encoder.name"] = SMALLER[path.stem]
    config = load_config(path, [f"{key}={value}" for key, value in overrides.items()])
    trainer = Trainer(config)
    trainer.model.train()
    (batch,) = trainer.loader
    values = trainer._train_step(batch)
    parts = dict(zip(trainer.train_step.names, values.tolist(), strict=True))
    assert parts["gradient_norm"] > 0
    assert parts.keys() & {"cross_entropy", "reward"}
    trainer.model.eval()
    metrics, _ = validate(trainer.model, trainer.vocabulary, trainer.data, config, trainer.device)
    assert config.validation.metric in metrics


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_to_its_own_folder(path):
    config = load_config(path)
    assert config.out == f"runs/{path.stem}"
    if not path.stem.startswith(("flickr8k", "tiny")):  # those need other captions, or drawn ones
        # The names that `captioner prepare` writes.
        (train,), (val,) = config.data.train, config.data.val
        assert (train.captions, train.split) == ("captions_karpathy.jsonl", "train")
        assert (val.captions, val.split) == ("captions_karpathy.jsonl", "val")


@pytest.mark.parametrize("names", SERIES, ids=lambda names: names[0])
def test_the_parts_of_a_series_fit_together(names):
    """Each starts from the one before, with the same weights: only what trains may change."""
    configs = [load_config(FOLDER / f"{name}.yaml") for name in names]
    assert configs[0].init is None
    for before, config in itertools.pairwise(configs):
        assert config.init == f"{before.out}/best.safetensors"
    models = [
        dataclasses.replace(
            config.model,
            encoder=dataclasses.replace(
                config.model.encoder, trainable_stages=0, train_depthwise=True
            ),
            attention=dataclasses.replace(config.model.attention, smooth=False),
            decoder=dataclasses.replace(config.model.decoder, dropout=0.0),
        )
        for config in configs
    ]
    assert models[0] == models[1] == models[2]
    assert [c.loss.objective for c in configs] == ["cross_entropy"] * 2 + ["self_critical"]
    assert [c.model.encoder.trainable_stages > 0 for c in configs] == [False, True, False]


def test_hard_attention_of_the_paper_differs_from_its_soft_attention_in_the_choice_alone():
    soft, hard = (load_config(FOLDER / f"paper_{kind}.yaml") for kind in ("soft", "hard"))
    attention = dataclasses.replace(soft.model.attention, mode="hard")
    model = dataclasses.replace(soft.model, attention=attention)
    assert hard == dataclasses.replace(soft, out=hard.out, model=model)
