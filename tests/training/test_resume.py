"""A run that stopped goes on to the same weights, to the bit; what does not fit it is refused."""

import json
import logging
import signal

import pytest
import torch
from helpers.trainings import Interrupt, log_lines, recipe, same
from pictures import write_pictures

from captioner.checkpoint import load_weights
from captioner.errors import CaptionerError, CheckpointError
from captioner.training.log import RunLog
from captioner.training.trainer import Trainer

CACHED = {"data": {"mirror": True}}
PHOTOS = {
    "data": {"mirror": True, "augment": True},
    "model": {"encoder": {"trainable_stages": 1, "batch_norm": "train"}},
    "loss": {"coverage": 0.5, "entropy": 0.1, "label_smoothing": 0.1},
}


@pytest.mark.parametrize(
    ("options", "workers", "steps"),
    [
        pytest.param(CACHED, 0, (4,), id="cache"),
        pytest.param(CACHED, 0, (2,), id="end-of-epoch"),
        pytest.param(PHOTOS, 0, (1, 5), id="photos", marks=pytest.mark.slow),
        pytest.param(PHOTOS, 1, (4,), id="photos-worker", marks=pytest.mark.slow),
    ],
)
def test_resuming_gives_the_same_weights_to_the_bit(tmp_path, options, workers, steps):
    """10 photos in 3 steps an epoch, 9 in all; interrupted after some of them."""
    results = {}
    for name in ("whole", "parts"):
        folder = tmp_path / name
        write_pictures(folder, 10, captions=3)
        data = {"captions_per_image": 2, "workers": workers, **options["data"]}
        config = recipe(folder, **{**options, "data": data, "log": {"every": 2}})
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


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_state_leaves_the_one_before_it(tmp_path, damage, caplog):
    """The last two are kept, and the older one leads to the same weights."""
    write_pictures(tmp_path, 10)
    results = []
    for name in ("whole", "damaged"):
        config = recipe(tmp_path, out=str(tmp_path / name), save_every=1)
        trainer = Trainer(config)
        if name == "damaged":
            Interrupt(trainer, 4)
            trainer.run()
            state = tmp_path / name / "last" / "state.pt"
            if damage == "cut":
                state.write_bytes(state.read_bytes()[:1000])
            else:  # between the two renames
                state.unlink()
            with caplog.at_level(logging.WARNING):
                trainer = Trainer(config, resume=True)
            assert trainer.step == 4
            assert ("going on from" in caplog.text) == (damage == "cut")
        trainer.run()
        results.append(load_weights(tmp_path / name / "last.safetensors"))
    same(*results)


def test_an_epoch_is_not_lost_when_its_validation_fails(tmp_path):
    write_pictures(tmp_path, 6)
    config = recipe(tmp_path, optim={"epochs": 1})
    trainer = Trainer(config)

    def fail(_epoch):
        raise OSError("disk full")

    trainer._validate = fail
    with pytest.raises(OSError, match="disk full"):
        trainer.run()
    trainer = Trainer(config, resume=True)
    assert trainer.step == trainer.total_steps
    trainer.run()  # nothing but the validation
    assert [line for line in log_lines(tmp_path) if "validation" in line]


def test_dropout_and_order_do_matter(tmp_path):
    """Else the test above could not fail: another seed gives other weights."""
    weights = []
    for seed in (0, 1):
        write_pictures(tmp_path / str(seed), 6)
        Trainer(recipe(tmp_path / str(seed), seed=seed, optim={"epochs": 1})).run()
        weights.append(load_weights(tmp_path / str(seed) / "run" / "last.safetensors"))
    with pytest.raises(AssertionError):
        same(*weights)


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
    with pytest.raises(CheckpointError, match="with the images and captions it was started with"):
        Trainer(recipe(tmp_path), resume=True)


def test_resuming_with_other_words_is_refused(tmp_path):
    """As many as before, so that every shape fits."""
    path = write_pictures(tmp_path, 4)
    Trainer(recipe(tmp_path)).run()
    path.write_text(path.read_text().replace(" ground.", " zebra."))
    with pytest.raises(CheckpointError, match="another vocabulary"):
        Trainer(recipe(tmp_path), resume=True)


@pytest.mark.parametrize("content", [None, b"", b"not a state", b"PK\x03\x04 cut", [1], {"a": 1}])
def test_there_is_nothing_to_resume(tmp_path, content):
    write_pictures(tmp_path, 4)
    if content is not None:
        (tmp_path / "run" / "last").mkdir(parents=True)
        state = tmp_path / "run" / "last" / "state.pt"
        if isinstance(content, bytes):
            state.write_bytes(content)
        else:
            torch.save(content, state)
    with pytest.raises(CheckpointError, match=r"state\.pt") as raised:
        Trainer(recipe(tmp_path), resume=True)
    assert len(str(raised.value).splitlines()) == 1


def test_the_log_of_a_run_that_crashed_goes_on_at_the_saved_step(tmp_path):
    """Lines of steps that are run again are dropped, and the one that the crash cut short."""
    path = tmp_path / "log.jsonl"
    log = RunLog(tmp_path)
    for step in (20, 40, 40, 60):
        log.write(step=step, words="été")
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 20, "lo')
    RunLog(tmp_path, keep=(40, 0)).write(step=60)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 40, 60]
    assert lines[0]["words"] == "été"
    assert "words" not in lines[-1]
    RunLog(tmp_path)  # a new run starts a new log
    assert path.read_text() == ""


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_validation_that_the_state_does_not_know_is_dropped_from_the_log(tmp_path, epochs):
    """A crash may come between the validation of an epoch and the state that says so."""
    path = tmp_path / "log.jsonl"
    log = RunLog(tmp_path)
    log.write(step=30, epoch=2, loss=1.0)
    log.write(step=30, epoch=3, validation={})
    RunLog(tmp_path, keep=(30, epochs))
    assert len(path.read_text().splitlines()) == epochs - 1
