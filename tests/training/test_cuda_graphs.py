"""Training on a GPU: captured steps against those that run operation by operation."""

import os

import pytest
import torch
from helpers.trainings import Interrupt, log_lines, recipe, same
from pictures import write_pictures

from captioner.checkpoint import load_weights
from captioner.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# PyTorch reads it at the first product of the process, which may be that of another test.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

STILL = {"model": {"decoder": {"dropout": 0.0}}}
CASES = {
    "cached": {},
    "deep": {
        "model": {
            "attention": {"see_word": True, "smooth": True},
            "decoder": {"deep_output": True},
        },
        "loss": {"coverage": 0.5, "entropy": 0.5, "entropy_target": 0.2, "label_smoothing": 0.1},
    },
    "accumulated": {"optim": {"accumulate": 2}},
    "fine-tuned": {"data": {"cache": None}, "model": {"encoder": {"trainable_stages": 1}}},
    "rewarded": {"loss": {"objective": "self_critical", "draws": 2, "cross_entropy": 0.5}},
}


@pytest.fixture(autouse=True)
def _settings():
    """What a deterministic training sets for the process ends with the test; no TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


def make_recipe(folder, name, *changes, **optim):
    values = {}
    for change in (STILL, {"optim": {"epochs": 7, **optim}}, *changes):
        for section, keys in change.items():
            if isinstance(keys, dict):
                into = values.setdefault(section, {})
                for key, value in keys.items():
                    into[key] = {**into.get(key, {}), **value} if isinstance(value, dict) else value
            else:
                values[section] = keys
    values |= {"device": "cuda", "out": str(folder / name)}
    values |= {"validation": {"every": 99, "limit": 2}, "log": {"every": 5}}
    return recipe(folder, **values)


def losses(folder, name):
    (folder / "run").unlink(missing_ok=True)
    (folder / "run").symlink_to(folder / name)
    return [line["loss"] for line in log_lines(folder) if "loss" in line]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_captured_steps_give_the_losses_and_weights_of_eager_ones(tmp_path, case):
    """21 steps in fp32 without dropout; three batches of one shape, so most of them are replays."""
    write_pictures(tmp_path, 12, captions=2)
    weights = []
    for name in ("eager", "captured"):
        config = make_recipe(tmp_path, name, case, cuda_graphs=name == "captured")
        trainer = Trainer(config)
        trainer.run()
        assert (trainer.train_step.captured > 0) == (name == "captured")
        weights.append(trainer.average.module.state_dict())
    assert losses(tmp_path, "captured") == pytest.approx(losses(tmp_path, "eager"), rel=1e-3)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_training_learns(tmp_path, precision):
    write_pictures(tmp_path, 12, captions=2)
    config = make_recipe(
        tmp_path, "run", {"model": {"decoder": {"dropout": 0.3}}}, precision=precision, epochs=20
    )
    Trainer(config).run()
    values = [line["loss"] for line in log_lines(tmp_path) if "loss" in line]
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("step", [2, 9])
@pytest.mark.parametrize("case", [CASES["cached"], CASES["rewarded"]], ids=["cached", "rewarded"])
def test_resuming_a_captured_training_is_exact(tmp_path, case, step):
    """With dropout, whose generator is part of the state: replays move it on as eager steps do."""
    results = []
    dropout = {"model": {"decoder": {"dropout": 0.3}}}
    for name in ("whole", "parts"):
        write_pictures(tmp_path, 12, captions=2)
        config = make_recipe(tmp_path, name, case, dropout, {"deterministic": True})
        if name == "parts":
            trainer = Trainer(config)
            Interrupt(trainer, step)
            trainer.run()
            assert trainer.step == step + 1
        Trainer(config, resume=name == "parts").run()
        results.append(load_weights(tmp_path / name / "last.safetensors"))
    same(*results)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equal_seeds_give_equal_weights(tmp_path, case):
    write_pictures(tmp_path, 12, captions=2)
    results = []
    for name in ("one", "other"):
        config = make_recipe(tmp_path, name, case, {"deterministic": True})
        Trainer(config).run()
        results.append(load_weights(tmp_path / name / "last.safetensors"))
    same(*results)


def test_a_training_goes_on_on_another_device(tmp_path):
    """Rates are tensors under CUDA graphs; the state holds numbers."""
    write_pictures(tmp_path, 12, captions=2)
    config = make_recipe(tmp_path, "run")
    trainer = Trainer(config)
    Interrupt(trainer, 5)
    trainer.run()
    changed = recipe(
        tmp_path, **STILL, optim={"epochs": 7}, validation={"every": 99, "limit": 2},
        log={"every": 5},
    )  # fmt: skip
    trainer = Trainer(changed, resume=True)
    trainer.run()
    assert trainer.step == trainer.total_steps
