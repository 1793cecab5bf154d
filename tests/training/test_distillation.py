"""Distillation: what teachers say is learnt, and only teachers that fit are taken."""

import pytest
import torch
from helpers.tiny import make_captions, make_decoder, make_grid
from helpers.trainings import recipe
from pictures import write_pictures

from captioner.checkpoint import load_checkpoint
from captioner.config import LossConfig
from captioner.errors import ConfigError
from captioner.training.losses import BatchCounts, caption_losses, imitation_loss
from captioner.training.trainer import Trainer


def forced(decoder, *, static=False):
    captions, lengths = make_captions([[5, 3], [4, 0], [2, 2]])
    return decoder(decoder.remember(make_grid(3)), captions, lengths, static=static), lengths


@pytest.mark.parametrize("static", [False, True])
def test_the_loss_is_the_cross_entropy_of_what_is_wanted(static):
    result, lengths = forced(make_decoder(9), static=static)
    wanted = torch.rand(result.logits.shape).softmax(-1)
    loss = imitation_loss(result, wanted, BatchCounts.of(lengths))
    real = result.mask.flatten() if static else slice(None)
    expected = torch.nn.functional.cross_entropy(result.logits[real], wanted[real])
    torch.testing.assert_close(loss, expected)


def test_it_takes_its_share_of_the_word_loss():
    result, lengths = forced(make_decoder(9))
    wanted, _ = forced(make_decoder(9, seed=1))
    wanted = wanted.logits.softmax(-1).detach()
    config = LossConfig(distillation=0.3, entropy=1.0, entropy_target=0.1)
    plain = caption_losses(result, config)
    both = caption_losses(result, config, wanted=wanted)
    imitation = imitation_loss(result, wanted, BatchCounts.of(lengths))
    expected = plain.total + 0.3 * (imitation - plain.parts["cross_entropy"])
    torch.testing.assert_close(both.total, expected)
    torch.testing.assert_close(both.parts["imitation"], imitation)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two short runs, and their recipe's folder."""
    folder = tmp_path_factory.mktemp("teachers")
    write_pictures(folder, 6, captions=2)
    paths = []
    for seed in (1, 2):
        config = recipe(folder, seed=seed, out=str(folder / f"run{seed}"), data={"cache": None})
        Trainer(config).run()
        paths.append(str(folder / f"run{seed}" / "best.safetensors"))
    return folder, paths


def test_a_student_imitates_the_mean_of_its_teachers(teachers):
    """With nothing but the teachers to learn from, it comes nearer to what they say."""
    folder, paths = teachers
    config = recipe(
        folder,
        out=str(folder / "student"),
        init=paths[0],
        data={"cache": None, "batch_size": 6},
        model={"decoder": {"dropout": 0.0}},
        loss={"teachers": paths, "distillation": 1.0},
        optim={"epochs": 20, "learning_rate": 5e-3},
        validation={"every": 50},
    )
    trainer = Trainer(config)
    (batch,) = trainer.loader
    models = [load_checkpoint(path)[0].eval() for path in paths]
    inputs = trainer.objective.inputs(batch)

    def say(model):
        return model(inputs, batch.captions, batch.lengths).logits.log_softmax(-1)

    with torch.no_grad():
        mean = (sum(say(model).exp() for model in models) / 2).log()

        def distance():
            own = say(trainer.model.eval())
            return torch.nn.functional.kl_div(own, mean, log_target=True, reduction="batchmean")

        before = distance()
    trainer.run()
    with torch.no_grad():
        assert distance() < before / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"min_count": 5}}, "another vocabulary"),
        ({"model": {"encoder": {"image_size": 96}}}, "in another size"),
        ({"loss": {"objective": "self_critical"}}, "objective=cross_entropy"),
        ({"model": {"attention": {"mode": "hard"}}}, "mode=soft"),
        ({"data": {"cache": "cache"}, "seed": 7}, "data.cache=null"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teachers, tmp_path, changes, message):
    folder, paths = teachers
    changes = {"data": {}, "loss": {}} | changes
    changes["data"] = {"cache": None} | changes["data"]
    if changes["data"]["cache"]:
        changes["data"]["cache"] = str(tmp_path / "cache")
    changes["loss"] = {"teachers": paths} | changes["loss"]
    config = recipe(folder, out=str(tmp_path / "run"), **changes)
    with pytest.raises(ConfigError, match=message):
        Trainer(config)
