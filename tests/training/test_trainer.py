"""Training on a handful of drawn pictures: it learns them by heart, and resumes to the bit."""

import json
import multiprocessing
import os

import pytest
import torch
import yaml
from helpers.searches import beam_search, greedy_search
from helpers.trainings import log_lines, recipe, same
from pictures import draw, scenes, sentences, write_pictures

from captioner.checkpoint import load_checkpoint, load_weights, read_header
from captioner.config import Config, load_config, to_dict
from captioner.decoding.options import DecodingOptions
from captioner.errors import CaptionerError, CheckpointError, ConfigError
from captioner.tokenizer import tokenize
from captioner.training.data import read_examples
from captioner.training.trainer import Trainer
from captioner.training.validation import _remember


@pytest.mark.parametrize(
    ("count", "stages", "batch_size", "epochs", "rate"),
    [(4, 0, 2, 18, 1e-2), (6, 9, 6, 12, 5e-3)],
    ids=["frozen", "fine-tuned"],
)
def test_overfits_to_the_exact_captions(tmp_path, count, stages, batch_size, epochs, rate):
    """Each picture comes five times an epoch; a random frozen trunk tells only some well apart."""
    write_pictures(tmp_path, count)
    encoder = {"width": 64, "strides": [8, 16]}
    encoder |= {"trainable_stages": stages, "batch_norm": "train"}
    config = recipe(
        tmp_path,
        seed=2,
        model={
            "encoder": encoder,
            "attention": {"size": 64},
            "decoder": {"hidden": 96, "dropout": 0.0},
        },
        data={"batch_size": batch_size, "train": [{"captions": "captions.json"}] * 5},
        optim={
            "epochs": epochs,
            "learning_rate": rate,
            "encoder_learning_rate": 2e-3,
            "weight_decay": 0.0,
            "ema": 0.5,
        },
        validation={"every": 1000},
    )
    metrics = Trainer(config).run()
    assert metrics["bleu4"] == pytest.approx(1.0)
    assert metrics["cider"] == pytest.approx(10.0, abs=0.01)
    # What was saved says the same of the pictures themselves.
    model, header = load_checkpoint(tmp_path / "run" / "best.safetensors")
    pixels = torch.stack([header.preprocess(draw(*scene)) for scene in scenes(count)])
    with torch.no_grad():
        memory = model.remember(pixels)
    expected = [tokenize(sentences(*scene)[0]) for scene in scenes(count)]
    greedy = greedy_search(model.decoder, memory)
    assert [header.vocabulary.decode(found.words) for found in greedy] == expected
    beam = beam_search(model.decoder, memory, DecodingOptions(beam=3))
    assert [header.vocabulary.decode(found[0].words) for found in beam] == expected
    assert all(found[0].finished for found in beam)


def test_the_run_folder(tmp_path):
    """Config, log and models are there, readable, and say how they were made."""
    write_pictures(tmp_path, 6, captions=2)
    config = recipe(tmp_path, validation={"every": 2}, log={"every": 2, "samples": 1})
    trainer = Trainer(config)
    metrics = trainer.run()
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "log.jsonl", "best.safetensors", "last.safetensors", "last", "samples"
    }  # fmt: skip
    assert load_config(run / "config.yaml") == config
    assert yaml.safe_load((run / "config.yaml").read_text()) == to_dict(config)

    lines = log_lines(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert [line["epoch"] for line in steps] == [0, 1, 2]
    for line in steps:
        assert line["loss"] > 0
        assert 0 < line["attention_entropy"] <= 1.0001
        assert line["learning_rate"] > 0
        assert line["gradient_norm"] > 0
    validations = [line for line in lines if "validation" in line]
    assert [line["epoch"] for line in validations] == [2, 3]  # every second, and the last
    assert validations[-1]["validation"] == metrics
    assert {"cider", "bleu1", "bleu4", "rouge_l", "words", "attention_entropy"} <= metrics.keys()

    for name in ("best", "last"):
        header = read_header(run / f"{name}.safetensors")
        assert header.config == config.model
        assert header.vocabulary == trainer.vocabulary
        assert header.preprocess.size == 64
        assert header.record["training_photos"] == 6
        assert header.record["recipe"]["seed"] == 0
        assert str(tmp_path) not in json.dumps(header.record)
        load_checkpoint(run / f"{name}.safetensors")
    assert read_header(run / "last.safetensors").record["validation"] == metrics
    best = max(line["validation"]["cider"] for line in validations)
    assert read_header(run / "best.safetensors").record["validation"]["cider"] == best
    # The averaged weights are saved, the live ones go on.
    saved = load_weights(run / "last.safetensors")["decoder.embed.weight"]
    assert torch.equal(saved, trainer.average.module.decoder.embed.weight)
    assert not torch.equal(saved, trainer.model.decoder.embed.weight)


def test_absolute_paths_of_the_recipe_stay_at_home(tmp_path):
    path = write_pictures(tmp_path, 4)
    source = {"captions": str(path), "images": str(tmp_path / "images"), "more_captions": str(path)}
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("a" + " 0.5" * 24 + "\n")
    texts = tmp_path / "texts.txt"
    texts.write_text("A text.\n")
    data = {"root": ".", "train": source, "val": [], "embeddings": str(vectors)}
    data |= {"texts": str(texts)}
    config = recipe(tmp_path, data=data, optim={"epochs": 1})
    assert Trainer(config).run() == {}  # no validation photos: the last epoch is the best
    record = read_header(tmp_path / "run" / "best.safetensors").record
    assert str(tmp_path) not in json.dumps(record)
    assert record["recipe"]["data"]["train"][0]["captions"] == "captions.json"
    assert record["recipe"]["data"]["train"][0]["more_captions"] == ["captions.json"]
    assert record["recipe"]["data"]["embeddings"] == "vectors.txt"


def test_a_frozen_encoder_stays_as_it_was(tmp_path):
    write_pictures(tmp_path, 6)
    trainer = Trainer(recipe(tmp_path, optim={"epochs": 2}))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trunk = {name for name in before if name.startswith("encoder.backbone.")}
    assert not moved & trunk
    # The word <pad> is never read, but the rest of the embeddings moves.
    assert moved == set(before) - trunk


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    write_pictures(tmp_path, 6)
    config = recipe(tmp_path, optim={"learning_rate": 1e36, "warmup": 0})
    with pytest.raises(CaptionerError, match=r"the loss is .* at step 1.*learning_rate") as raised:
        Trainer(config).run()
    assert len(str(raised.value).splitlines()) <= 2
    assert not (tmp_path / "run" / "last").exists()
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_gradients_that_are_not_finite_never_reach_the_weights(tmp_path):
    """The loss of the same step may be finite; the state of an earlier step stays the last."""
    write_pictures(tmp_path, 8)
    trainer = Trainer(recipe(tmp_path, save_every=1))

    def overflow(gradient):
        return gradient * (float("inf") if trainer.step == 1 else 1.0)

    trainer.model.decoder.project.bias.register_hook(overflow)
    with pytest.raises(CaptionerError, match=r"the gradient's norm is (inf|nan) at step 1: "):
        trainer.run()
    state = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert state["step"] == 1
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_no_clipping(tmp_path):
    """clip=0 is not a norm of 0: the steps are those of a limit that is never reached."""
    write_pictures(tmp_path, 4)
    weights = []
    for clip in (0, 1e9, 1e-3):
        out = tmp_path / str(clip)
        optim = {"epochs": 1, "clip": clip}
        Trainer(recipe(tmp_path, out=str(out), optim=optim)).run()
        weights.append(load_weights(out / "last.safetensors"))
    same(weights[0], weights[1])
    with pytest.raises(AssertionError):
        same(weights[0], weights[2])


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_photos_whose_captions_have_no_words_teach_nothing(tmp_path, mode):
    """They come together in a batch, for batches are sorted by length."""
    path = write_pictures(tmp_path, 6)
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:3]:
        annotation["caption"] = "..."
    path.write_text(json.dumps(content))
    config = recipe(
        tmp_path,
        model={"attention": {"mode": mode}},
        data={"batch_size": 1, "val": []},
        loss={"entropy": 1.0, "coverage": 0.1},
        optim={"epochs": 1, "accumulate": 2},
        log={"every": 1},
    )
    Trainer(config).run()
    losses = [line["loss"] for line in log_lines(tmp_path) if "loss" in line]
    assert sum(loss == 0 for loss in losses) == 3
    assert len(losses) == 6


def test_no_word_is_common_enough(tmp_path):
    write_pictures(tmp_path, 4)
    with pytest.raises(ConfigError, match=r"no word occurs data\.min_count=99 times"):
        Trainer(recipe(tmp_path, data={"min_count": 99}))


def test_workers_do_not_get_the_signals_of_their_group(tmp_path):
    """torchrun sends SIGTERM to the group: without its workers a training cannot end its step."""
    write_pictures(tmp_path, 4)
    trainer = Trainer(recipe(tmp_path, data={"workers": 1, "cache": None}))
    batches = iter(trainer.loader)
    next(batches)  # the worker is there, and ready
    workers = multiprocessing.active_children()
    assert workers
    assert all(os.getpgid(worker.pid) != os.getpgid(0) for worker in workers)


def test_processes_start_with_the_same_weights_and_other_dropout(tmp_path, monkeypatch):
    write_pictures(tmp_path, 6)
    config = recipe(tmp_path, data={"batch_size": 3, "cache": None})
    monkeypatch.setattr("captioner.training.trainer.world_size", lambda: 3)
    models, seeds = [], []
    for number in range(3):
        monkeypatch.setattr("captioner.training.trainer.rank", lambda number=number: number)
        models.append(dict(Trainer(config).model.state_dict()))
        seeds.append(torch.rand(8))
    same(models[0], models[1])
    same(models[0], models[2])
    assert len({tuple(seed.tolist()) for seed in seeds}) == 3


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path, 6)
    monkeypatch.setattr("captioner.training.trainer.world_size", lambda: 2)
    message = r"data\.batch_size=3 cannot be shared by 2 processes"
    with pytest.raises(ConfigError, match=message):
        Trainer(recipe(tmp_path, data={"batch_size": 3}))


def test_starting_from_a_model(tmp_path):
    """`init` brings weights and vocabulary; what is new in this recipe starts fresh."""
    write_pictures(tmp_path / "first", 6)
    Trainer(recipe(tmp_path / "first", optim={"epochs": 2})).run()
    start = tmp_path / "first" / "run" / "last.safetensors"
    write_pictures(tmp_path / "second", 4)
    stage = {"trainable_stages": 1}
    config = recipe(tmp_path / "second", init=str(start), model={"encoder": stage})
    trainer = Trainer(config)
    assert trainer.vocabulary == read_header(start).vocabulary
    same(dict(trainer.model.state_dict()), load_weights(start))
    trainer.run()
    record = read_header(tmp_path / "second" / "run" / "last.safetensors").record
    assert record["recipe"]["init"] == "last.safetensors"
    refined = recipe(
        tmp_path / "third",
        init=str(start),
        data={"root": str(tmp_path / "second")},
        model={"encoder": {"refine_layers": 1}},
    )
    weights = load_weights(start)
    for name, tensor in Trainer(refined).model.state_dict().items():
        assert torch.equal(tensor, weights[name]) if name in weights else "refine" in name, name
    wider = recipe(tmp_path / "second", out=str(tmp_path / "x"), init=str(start),
                   model={"decoder": {"hidden": 40}})  # fmt: skip
    with pytest.raises(CheckpointError, match="does not fit this recipe"):
        Trainer(wider)


def test_captions_of_further_files_are_added_to_the_same_images(tmp_path):
    write_pictures(tmp_path, 4)
    first = json.loads((tmp_path / "captions.json").read_text())
    names = [image["file_name"] for image in first["images"]]
    rows = [{"image": name, "caption": "One more.", "split": "val"} for name in names[1:]]
    rows.append({"image": "of-somebody-else.png", "caption": "Not here."})
    (tmp_path / "more").mkdir()
    more = tmp_path / "more" / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [{"image": name, "captions": ["A picture."], "split": "train"} for name in names[:3]]
    lines.append({"image": names[3], "captions": ["Another."], "split": "val"})
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"captions": "first.jsonl", "images": "images", "split": "train"}
    joined = {**source, "images": "more/../images", "more_captions": ["more/more.jsonl"]}
    alone, _ = read_examples(recipe(tmp_path, data={"train": [source]}).data, None)
    both, _ = read_examples(recipe(tmp_path, data={"train": [joined, source]}).data, None)
    assert [os.path.basename(e.image) for e in both] == names[:3] * 2  # a file may come twice
    assert [e.captions for e in both[3:]] == [e.captions for e in alone]
    assert both[0].captions == alone[0].captions
    assert [e.captions for e in both[1:3]] == [(*e.captions, "One more.") for e in alone[1:]]


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_validation_encodes_as_precisely_as_captioning(tmp_path, monkeypatch, precision):
    """Where bf16 is faster, `auto` trains in it and still validates with the CNN in fp32."""
    monkeypatch.setattr("captioner.utils.device.fast_bf16", lambda device: True)
    write_pictures(tmp_path, 3)
    config = recipe(tmp_path, optim={"precision": precision})
    trainer = Trainer(config)
    model, data = trainer.model.eval(), trainer.data
    pixels = torch.stack([trainer.preprocess(draw(*scene)) for scene in scenes(3)])
    with torch.no_grad():
        exact = model.encoder.forward_features(pixels)
        memory = _remember(model, pixels, config, trainer.device)
    (cached,) = data.val_inputs(range(3), 3, trainer.device)
    error = max((c - e).abs().max() / e.abs().max() for c, e in zip(cached, exact, strict=True))
    assert (error < 1e-3) == (precision == "auto")
    assert memory.values.dtype == {"auto": torch.float32, "bf16": torch.bfloat16}[precision]


def test_no_training_captions():
    with pytest.raises(ConfigError, match=r"data\.train"):
        Trainer(Config(device="cpu"))
