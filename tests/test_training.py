"""Training on a handful of drawn pictures: it learns them by heart, and resumes to the bit."""

import json
import signal

import pytest
import torch
import yaml
from pictures import draw, scenes, sentences, write_pictures

from captioner.checkpoint import load_checkpoint, load_weights, read_header
from captioner.config import Config, from_dict, load_config, to_dict
from captioner.decoding.beam import beam_search
from captioner.decoding.greedy import greedy_search
from captioner.decoding.options import SearchOptions
from captioner.errors import CaptionerError, CheckpointError, ConfigError
from captioner.models.captioner import CaptionModel
from captioner.text import tokenize
from captioner.training.log import JsonLinesLog
from captioner.training.loop import Trainer
from captioner.training.optimizer import AveragedWeights, build_optimizer, build_schedule


def recipe(folder, captions="captions.json", **sections):
    """A tiny run in `folder`/run; sections are merged over it."""
    values = {
        "out": str(folder / "run"),
        "device": "cpu",
        "model": {
            "encoder": {
                "name": "timm/mobilenetv3_small_050",
                "pretrained": False,
                "image_size": 64,
                "width": 32,
            },
            "attention": {"size": 16},
            "decoder": {"embedding": 24, "hidden": 48, "dropout": 0.1},
        },
        "data": {
            "root": str(folder),
            "train": {"captions": captions},
            "val": {"captions": captions},
            "min_count": 1,
            "batch_size": 4,
            "mirror": False,
            "cache": str(folder / "cache"),
            "workers": 0,
        },
        "loss": {"label_smoothing": 0.0},
        "optim": {"epochs": 3, "warmup": 2, "ema": 0.9, "precision": "fp32"},
        "validation": {"beam": 2, "max_length": 12},
        "log": {"samples": 1},
    }

    def merge(into, changes):
        for key, value in changes.items():
            if isinstance(value, dict):
                merge(into.setdefault(key, {}), value)
            else:
                into[key] = value

    merge(values, sections)
    return from_dict(Config, values)


def log_lines(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


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
    beam = beam_search(model.decoder, memory, SearchOptions(beam=3))
    assert [header.vocabulary.decode(found[0].words) for found in beam] == expected
    assert all(found[0].finished for found in beam)


class Interrupt:
    """Sends Ctrl-C to this process in the middle of one training step."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step
        self.original = trainer._train_step
        trainer._train_step = self

    def __call__(self, batch):
        if self.trainer.step == self.step:
            signal.raise_signal(signal.SIGINT)
        return self.original(batch)


def same(one, other, where=""):
    """Equal to the bit, through all containers."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{where}[{number}]")
    else:
        assert one == other, where


CACHED = {"data": {"mirror": True}}
PHOTOS = {
    "data": {"mirror": True, "augment": True},
    "model": {"encoder": {"trainable_stages": 1, "batch_norm": "train"}},
    "loss": {"coverage": 0.5, "entropy": 0.1, "label_smoothing": 0.1},
}


@pytest.mark.parametrize(
    ("options", "workers", "steps"),
    [(CACHED, 0, (4,)), (PHOTOS, 0, (1, 5)), (PHOTOS, 1, (4,)), (CACHED, 0, (2,))],
    ids=["cache", "photos", "photos-worker", "end-of-epoch"],
)
def test_resuming_gives_the_same_weights_to_the_bit(tmp_path, options, workers, steps):
    """10 photos in 3 steps an epoch, 9 in all; interrupted after some of them."""
    results = {}
    for name in ("whole", "parts"):
        folder = tmp_path / name
        write_pictures(folder, 10, captions=3)
        data = {"captions_per_image": 2, "workers": workers, **options["data"]}
        config = recipe(folder, **{**options, "data": data, "log": {"every": 1}})
        previous = signal.getsignal(signal.SIGINT)
        if name == "parts":
            for number, step in enumerate(steps):
                trainer = Trainer(config, resume=number > 0)
                Interrupt(trainer, step)
                trainer.run()
                assert trainer.step == step + 1
                assert (folder / "run" / "last" / "state.pt").exists()
        torch.manual_seed(77 if name == "parts" else 78)  # whatever happened in between
        trainer = Trainer(config, resume=name == "parts")
        trainer.run()
        assert trainer.step == 9
        assert signal.getsignal(signal.SIGINT) is previous
        state = torch.load(folder / "run" / "last" / "state.pt", weights_only=True)
        files = [load_weights(folder / "run" / f"{n}.safetensors") for n in ("last", "best")]
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in log_lines(folder)]
        results[name] = (state, files, lines)
    same(*results.values())
    assert results["whole"][2]  # the log was compared too


def test_dropout_and_order_do_matter(tmp_path):
    """Else the test above could not fail: another seed gives other weights."""
    weights = []
    for seed in (0, 1):
        write_pictures(tmp_path / str(seed), 6)
        Trainer(recipe(tmp_path / str(seed), seed=seed, optim={"epochs": 1})).run()
        weights.append(load_weights(tmp_path / str(seed) / "run" / "last.safetensors"))
    with pytest.raises(AssertionError):
        same(*weights)


def test_the_run_folder(tmp_path):
    """Config, log and models are there, readable, and say how they were made."""
    write_pictures(tmp_path, 6, captions=2)
    config = recipe(tmp_path, validation={"every": 2}, log={"every": 2})
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
    assert torch.equal(saved, trainer.average.average["decoder.embed.weight"])
    assert not torch.equal(saved, trainer.model.decoder.embed.weight)


def test_absolute_paths_of_the_recipe_stay_at_home(tmp_path):
    path = write_pictures(tmp_path, 4)
    source = {"captions": str(path), "images": str(tmp_path / "images")}
    config = recipe(tmp_path, data={"root": ".", "train": source, "val": []}, optim={"epochs": 1})
    assert Trainer(config).run() == {}  # no validation photos: the last epoch is the best
    record = read_header(tmp_path / "run" / "best.safetensors").record
    assert str(tmp_path) not in json.dumps(record)
    assert record["recipe"]["data"]["train"][0]["captions"] == "captions.json"


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


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    write_pictures(tmp_path, 4)
    config = recipe(tmp_path, optim={"epochs": 1})
    Trainer(config).run()
    with pytest.raises(CaptionerError, match="holds a run already"):
        Trainer(config)
    # Resuming a finished run does nothing more.
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    Trainer(config, resume=True).run()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"epochs": 7}}, "optim.epochs was 3 and is now 7"),
        ({"optim": {"learning_rate": 0.5}}, "optim.learning_rate was .* and is now 0.5"),
        ({"model": {"decoder": {"hidden": 40}}}, "model.decoder.hidden was .* and is now 40"),
        ({"seed": 5}, "seed was 0 and is now 5"),
    ],
)
def test_resuming_with_another_recipe_is_refused(tmp_path, changes, message):
    write_pictures(tmp_path, 4)
    Trainer(recipe(tmp_path)).run()
    with pytest.raises(CheckpointError, match=message) as raised:
        Trainer(recipe(tmp_path, **changes), resume=True)
    assert len(str(raised.value).splitlines()) == 1


def test_resuming_with_other_photos_is_refused(tmp_path):
    write_pictures(tmp_path, 4)
    Trainer(recipe(tmp_path)).run()
    write_pictures(tmp_path, 40)
    with pytest.raises(CheckpointError, match="photos"):
        Trainer(recipe(tmp_path), resume=True)


@pytest.mark.parametrize("content", [None, b"", b"not a state", b"PK\x03\x04 cut"])
def test_there_is_nothing_to_resume(tmp_path, content):
    write_pictures(tmp_path, 4)
    if content is not None:
        (tmp_path / "run" / "last").mkdir(parents=True)
        (tmp_path / "run" / "last" / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt") as raised:
        Trainer(recipe(tmp_path), resume=True)
    assert len(str(raised.value).splitlines()) == 1


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


def test_no_training_captions():
    with pytest.raises(ConfigError, match=r"data\.train"):
        Trainer(Config(device="cpu"))


def test_parameter_groups(tiny_model):
    """The trunk has its own rate; vectors and word embeddings do not decay."""
    config = recipe_optim()
    model = CaptionModel(trunk_trains(tiny_model.config), 30)
    optimizer = build_optimizer(model, config)
    settings = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(settings) == len(trainable)
    for name, parameter in trainable.items():
        rate = 1e-4 if name.startswith("encoder.backbone") else 1e-3
        decays = parameter.ndim > 1 and "embed" not in name
        assert settings[id(parameter)] == (rate, 0.01 if decays else 0.0), name


def recipe_optim():
    return Config().optim


def trunk_trains(config):
    values = to_dict(config)
    values["encoder"]["trainable_stages"] = 1
    return from_dict(type(config), values)


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (0, 50), (500, 20)])
def test_schedule_warms_up_and_falls(warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    config = from_dict(type(recipe_optim()), {"warmup": warmup})
    schedule = build_schedule(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    top = rates.index(max(rates))
    assert top == min(warmup, steps // 2)
    assert max(rates) == pytest.approx(2.0)
    assert rates[0] > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.019 < rates[-1] < 0.1 * 2


def test_averaged_weights():
    module = torch.nn.Linear(2, 1)
    live = module.weight.detach().clone()
    average = AveragedWeights(module, 0.9)
    expected = live.clone()
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)
    now = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, now)
    off = AveragedWeights(module, 0.0)
    with torch.no_grad():
        module.weight.mul_(3)
    off.update()
    assert torch.equal(off.average["weight"], module.weight)


def test_the_log_of_a_run_that_crashed_goes_on_at_the_saved_step(tmp_path):
    """Lines of steps that are run again are dropped, and the one that the crash cut short."""
    path = tmp_path / "log.jsonl"
    log = JsonLinesLog(path)
    for step in (20, 40, 40, 60):
        log.write(step=step, words="été")
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 20, "lo')
    JsonLinesLog(path, keep_until=40).write(step=60)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 40, 60]
    assert lines[0]["words"] == "été"
    assert "words" not in lines[-1]
    JsonLinesLog(path)  # a new run starts a new log
    assert path.read_text() == ""
