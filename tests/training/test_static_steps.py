"""Steps in static shapes: what a GPU runs as CUDA graphs, here without a graph."""

import pytest
import torch
from helpers.reading_back import ReadsNothingBack
from helpers.tiny import make_captions, make_decoder, make_grid
from helpers.trainings import Interrupt, log_lines, recipe, same
from pictures import write_pictures

from captioner.config import LossConfig
from captioner.data.caption_batch import CaptionBatch
from captioner.metrics.cider import DocumentFrequency
from captioner.training import step as module
from captioner.training.losses import BatchCounts
from captioner.training.self_critical import SampledBatch, SelfCritical
from captioner.training.trainer import Trainer

PLAIN = {"model": {"decoder": {"dropout": 0.0}}}
ALL = {
    "model": {
        "encoder": {"trainable_stages": 1, "refine_layers": 1, "width": 32},
        "attention": {"smooth": True, "see_word": True},
        "decoder": {"deep_output": True},
    },
    "data": {"cache": None},
    "loss": {"coverage": 0.5, "entropy": 0.1, "label_smoothing": 0.1, "scheduled_sampling": 0.5},
    "optim": {"accumulate": 2},
}
REWARDED = {"loss": {"objective": "self_critical", "draws": 2, "cross_entropy": 0.5}}


@pytest.fixture
def static(monkeypatch):
    """All steps of this test run in static shapes."""
    monkeypatch.setattr(module, "why_not_captured", lambda config, device: None)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_static_steps_train_what_dynamic_ones_do(tmp_path, monkeypatch, accumulate):
    """10 photos in 3 steps an epoch; no dropout, whose draws depend on the form."""
    write_pictures(tmp_path, 10, captions=3)
    loss = {"entropy": 0.5, "entropy_target": 0.2, "label_smoothing": 0.1}
    weights, losses = [], []
    for name, reason in (("dynamic", "asked for"), ("static", None)):
        monkeypatch.setattr(module, "why_not_captured", lambda *_, reason=reason: reason)
        trainer = Trainer(
            recipe(
                tmp_path,
                **PLAIN,
                out=str(tmp_path / name),
                loss=loss,
                optim={"epochs": 2, "accumulate": accumulate},
                validation={"every": 9, "limit": 1},
                log={"every": 1},
            )
        )
        trainer.run()
        weights.append(trainer.average.module.state_dict())
        (tmp_path / "run").unlink(missing_ok=True)
        (tmp_path / "run").symlink_to(tmp_path / name)
        losses.append([line["loss"] for line in log_lines(tmp_path) if "loss" in line])
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [PLAIN, ALL, REWARDED], ids=["plain", "all", "rewarded"])
def test_a_step_reads_nothing_back(tmp_path, static, monkeypatch, options):
    """From the prepared batch to the averaged weights: a graph can hold all of it."""
    write_pictures(tmp_path, 4, captions=2)
    trainer = Trainer(recipe(tmp_path, **options))
    trainer.model.train()
    (batch,) = trainer.loader
    trainer._train_step(batch)  # the optimizer makes its states in the first step
    prepared = trainer.objective.prepare(batch, 1)
    monkeypatch.setattr(trainer.train_step, "_check", lambda *_: None)  # on CPUs only
    trainer.average.advance()
    step = torch.tensor(1)
    with ReadsNothingBack():
        trainer.train_step._compute(prepared, step, 2)


@pytest.fixture
def settings(monkeypatch):
    """What a deterministic training sets for the process ends with the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(REWARDED, marks=pytest.mark.slow),
        {"deterministic": True},
    ],
    ids=["captions", "rewarded", "deterministic"],
)
def test_resuming_is_exact(tmp_path, static, settings, options):
    results = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        write_pictures(folder, 6, captions=2)
        config = recipe(folder, **options | {"validation": {"limit": 2}, "log": {"every": 4}})
        if name == "parts":
            trainer = Trainer(config)
            Interrupt(trainer, 2)
            trainer.run()
            assert trainer.step == 3
        trainer = Trainer(config, resume=name == "parts")
        trainer.run()
        state = torch.load(folder / "run" / "last" / "state.pt", weights_only=True)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in log_lines(folder)]
        results.append((state, lines))
    same(*results)
    (group, *_) = results[0][0]["optimizer"]["param_groups"]
    assert isinstance(group["lr"], float)  # another device may go on


def test_there_are_few_shapes(tmp_path, static):
    write_pictures(tmp_path, 12, captions=3)
    config = recipe(tmp_path, data={"batch_size": 5}, optim={"epochs": 2}, validation={"limit": 1})
    trainer = Trainer(config)
    trainer.run()
    shapes = {
        (images, captions[2])
        for (_, images), (captions, _) in (
            ((None, each[-1][0]), each[-3]) for each in trainer.train_step._graphs._shapes
        )
    }
    assert all((length - 1) % 4 == 0 for _, length in shapes)
    assert len({images for images, _ in shapes}) <= 2  # batches differ by one image at most


class Stub(torch.nn.Module):
    """A model whose encoder hands its features on."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.encoder = torch.nn.Module()
        self.encoder.forward_neck = lambda stages: make_grid(3)._replace(features=stages[0])


@pytest.mark.parametrize("baseline", ["others", "greedy"])
@pytest.mark.parametrize("imitated", [0.0, 0.7])
def test_a_prepared_batch_teaches_the_same(baseline, imitated):
    """The device's sampler draws what the host's draws, and the losses are equal."""
    references = [[[4, 5, 6, 2], [4, 5, 7, 2]], [[8, 6, 4, 2]], [[5, 5, 8, 4, 2]]]
    config = LossConfig(
        objective="self_critical", draws=3, baseline=baseline, cross_entropy=imitated, entropy=0.5,
        entropy_target=0.1,
    )  # fmt: skip
    objective = SelfCritical(
        Stub(make_decoder(9)), None, config, 10, DocumentFrequency(references), max_length=6
    )
    captions, lengths = make_captions([[5, 3], [4, 0], [2, 2]])
    batch = CaptionBatch(None, [make_grid(3).features], captions, lengths, torch.arange(3))
    counts = BatchCounts(*objective.count(batch).float())
    expected = objective(batch, counts, step=4)
    prepared = objective.prepare(batch, 4)
    assert isinstance(prepared, SampledBatch)
    assert prepared.sampled.shape[-1] % 4 == 1
    objective.static = True
    for found in (objective(prepared, counts, 4), objective(batch, counts, 4)):
        torch.testing.assert_close(found.total, expected.total)
        torch.testing.assert_close(found.parts, expected.parts)
