"""What TensorBoard gets: the records of the log, and the histogram of attention sums."""

import builtins
import json

import pytest
import torch

from captioner.errors import ConfigError
from captioner.training.log import RunLog, read_log
from captioner.training.validation import EDGES, AttentionSums

TRAINING = {"learning_rate": 1e-3, "gradient_norm": 1.5, "loss": 3.0, "attention_entropy": 0.7}
VALIDATION = {"cider": 0.5, "bleu4": 0.2, "attention_entropy": 0.6}


def random_maps(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).softmax(-1)


def read_events(folder):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_curves_and_histogram(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    sums = AttentionSums()
    sums.add(random_maps(5, 7, 12))
    log = RunLog(tmp_path, tensorboard=True)
    for step in (20, 40):
        log.write(step=step, epoch=0, **{**TRAINING, "loss": 60 / step})
    log.write(step=40, epoch=1, validation=VALIDATION, attention_sums=sums.record())
    log.close()
    events = read_events(tmp_path)
    tags = {f"train/{name}" for name in TRAINING} | {f"validation/{name}" for name in VALIDATION}
    assert set(events.Tags()["scalars"]) == tags
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(20, 3.0), (40, 1.5)]
    assert events.Scalars("validation/cider")[0].value == pytest.approx(0.5)
    (histogram,) = events.Histograms("attention/sum_over_words")
    value = histogram.histogram_value
    assert histogram.step == 40
    assert value.num == sum(value.bucket) == 5 * 12
    assert value.sum == pytest.approx(5 * 7, abs=0.01)  # every word's map sums to 1
    lines = read_log(tmp_path)  # and the log has all of it too
    assert [line["step"] for line in lines] == [20, 40, 40]
    assert lines[-1]["attention_sums"]["counts"] == sums.record()["counts"]


def test_after_a_resume_each_step_is_there_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    log = RunLog(tmp_path, tensorboard=True)
    for step in (20, 40, 60):
        log.write(step=step, loss=1.0)
    log.close()
    log = RunLog(tmp_path, (40, 0), tensorboard=True)
    for step in (60, 80):
        log.write(step=step, loss=2.0)
    log.close()
    curve = [(e.step, e.value) for e in read_events(tmp_path).Scalars("train/loss")]
    assert curve == [(20, 1.0), (40, 1.0), (60, 2.0), (80, 2.0)]
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path)] == curve


def test_without_tensorboard_nothing_is_imported_or_written(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    log = RunLog(tmp_path)
    log.write(step=1, loss=1.0)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_missing_tensorboard_is_told_before_the_log_is_touched(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'captioner\[tensorboard\]'"):
        RunLog(tmp_path, tensorboard=True)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'


def test_attention_sums_are_the_sums_over_the_words():
    lengths = (5, 2, 1, 3)
    sums = AttentionSums()
    expected = []
    for length in lengths:
        maps = random_maps(length, 9)  # (T, L)
        sums.add(maps)
        expected += maps.double().sum(0).tolist()
    record = sums.record()
    counts = [0] * (len(EDGES) - 1)
    for value in expected:
        counts[max(number for number, edge in enumerate(EDGES[:-1]) if edge <= value)] += 1
    assert record["counts"] == counts
    assert record["sum"] == pytest.approx(sum(lengths), abs=1e-3)
    assert record["sum_squares"] == pytest.approx(sum(v * v for v in expected), abs=1e-2)
    json.dumps(record)


def test_attention_sums_of_parts_add_up():
    maps = random_maps(4, 6, 9)
    whole, parts = AttentionSums(), [AttentionSums(), AttentionSums()]
    whole.add(maps)
    parts[0].add(maps[:1])
    parts[1].add(maps[1:])
    total = parts[0].values + parts[1].values
    torch.testing.assert_close(total, whole.values)


def test_a_flat_and_a_staring_model_look_different():
    cells, words = 64, 8
    flat = torch.full((1, words, cells), 1 / cells)
    staring = torch.zeros(1, words, cells)
    staring[..., 0] = 1.0
    records = []
    for maps in (flat, staring):
        sums = AttentionSums()
        sums.add(maps)
        records.append(sums.record())
    assert max(records[0]["counts"]) == cells  # all in the bin of T/L
    assert records[1]["counts"][0] == cells - 1  # nothing
    assert records[1]["counts"][EDGES.index(8.0)] == 1  # everything
