"""Curves of runs: what is in the logs is in the figure, and what cannot be drawn is an error."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from captioner.cli import main as cli
from captioner.errors import ConfigError, DataError
from captioner.training.log import read_log
from captioner.training.plot import (
    PANELS,
    color_of,
    draw_runs,
    plot_runs,
    read_runs,
    running_mean,
)


def write_run(folder, steps=100, *, validations=2, level=1.0, tail=""):
    """A log as a training writes it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = []
    for step in range(1, steps + 1):
        records.append(
            {
                "step": step,
                "epoch": 0,
                "learning_rate": 1e-3 * step / steps,
                "loss": level * (4 + float(rng.normal())),
                "gradient_norm": 1.0,
                "attention_entropy": 0.7,
            }
        )
        if validations and step % (steps // validations) == 0:
            metrics = {"cider": level * step / steps, "bleu4": 0.2, "attention_entropy": 0.6}
            records.append({"step": step, "epoch": 1, "validation": metrics})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "log.jsonl").write_text(text + tail)
    return folder


def curves(figure, title):
    """The lines of a panel as (color, points)."""
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return [(line.get_color(), line.get_xydata()) for line in axes.lines if len(line.get_xydata())]


def test_each_run_has_its_color_and_its_line_in_the_legend(tmp_path):
    names = ["a", "_$b$"]  # Matplotlib would leave out the one and set the other as a formula
    runs = read_runs([write_run(tmp_path / name, level=1 + n) for n, name in enumerate(names)])
    figure = draw_runs(runs)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "a: best CIDEr 1.000 at step 100",
        "_$b$: best CIDEr 2.000 at step 100",
    ]
    assert [line.get_color() for line in legend.get_lines()] == [color_of(0), color_of(1)]
    assert {color for color, _ in curves(figure, "loss")} == {color_of(0), color_of(1)}
    figure.savefig(tmp_path / "x.svg")  # the names can be drawn
    assert len({color_of(number) for number in range(30)}) == 30


def test_a_panel_shows_its_own_values(tmp_path):
    """Without validations the panels of CIDEr and BLEU-4 are empty; the others stay."""
    folders = [write_run(tmp_path / "no", validations=0), write_run(tmp_path / "yes")]
    figures = [draw_runs(read_runs([folder])) for folder in folders]
    for panel in PANELS:
        if not panel.optional:
            drawn = [bool(curves(figure, panel.title)) for figure in figures]
            assert drawn == [panel.training is not None, True], panel.title
    ((_, points),) = curves(figures[1], "validation BLEU-4")
    np.testing.assert_allclose(points, [[50, 20], [100, 20]])
    ((_, points),) = curves(figures[1], "learning rate")
    np.testing.assert_allclose(points, [[step, 1e-5 * step] for step in range(1, 101)])
    losses = [record["loss"] for record in read_log(folders[1]) if "loss" in record]
    thin, mean = (points for _, points in curves(figures[1], "loss"))
    np.testing.assert_allclose(thin[:, 1], losses)
    assert np.ptp(mean[:, 1]) < np.ptp(thin[:, 1])


@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel.optional])
def test_values_that_only_some_runs_have_get_a_panel_only_then(tmp_path, panel):
    folder = write_run(tmp_path / "run")
    without = draw_runs(read_runs([folder]))
    records = read_log(folder)
    lines = (json.dumps({**record, panel.training: record["step"]}) for record in records)
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    figure = draw_runs(read_runs([folder]))
    assert len(figure.axes) == len(without.axes) + 1
    assert curves(figure, panel.title)


def test_values_below_zero_are_all_shown(tmp_path):
    """The self-critical loss: no curve is cut off at the top of its panel."""
    folder = write_run(tmp_path / "run")
    records = [{**record, "loss": 0.03 * record["step"] - 4} for record in read_log(folder)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    low, high = draw_runs(read_runs([folder])).axes[0].get_ylim()
    assert -4.5 < low < -4
    assert -1 < high < -0.5


def test_a_spike_does_not_flatten_the_rest(tmp_path):
    """With one value of 1e6 among 300, the loss still fills its panel."""
    folder = write_run(tmp_path / "run", steps=300)
    lines = (folder / "log.jsonl").read_text().splitlines()
    spike = json.loads(lines[10]) | {"loss": 1e6, "gradient_norm": float("nan")}
    lines[10] = json.dumps(spike)  # NaN as Python writes it
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    figure = draw_runs(read_runs([folder]))
    assert figure.axes[0].get_ylim()[1] < 20
    ((_, points),) = curves(figure, "gradient norm")
    assert len(points) == 299


def test_running_mean():
    rng = np.random.default_rng(0)
    noisy = [(float(step), 5 + float(rng.normal())) for step in range(400)]
    mean = running_mean(noisy)
    assert [step for step, _ in mean] == [step for step, _ in noisy]
    middle = [value for _, value in mean[20:-20]]
    expected = [np.mean([v for _, v in noisy[n - 10 : n + 11]]) for n in range(20, 380)]
    np.testing.assert_allclose(middle, expected)
    assert mean[0] == noisy[0]  # no neighbour on its left, so none on its right
    smooth = [(float(step), step**2 / 1e4) for step in range(400)]
    assert running_mean(smooth) == smooth
    assert running_mean(noisy[:50]) == noisy[:50]


def test_labels_tell_runs_apart(tmp_path):
    same = [write_run(tmp_path / name / "run") for name in "ab"]
    labels = [run.label for run in read_runs([*same, write_run(tmp_path / "c"), same[0]])]
    assert labels == [str(same[0]), str(same[1]), "c", str(same[0])]
    assert [run.label for run in read_runs([tmp_path / "c" / "log.jsonl"])] == ["c"]
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "c" / "log.jsonl").read_bytes())
    assert [run.label for run in read_runs([tmp_path / "copy.jsonl"])] == ["copy"]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    whole = read_log(write_run(tmp_path / "whole"))
    torn = write_run(tmp_path / "torn", tail='{"step": 101, "lo')
    assert read_log(torn) == whole
    with open(torn / "log.jsonl", "a") as file:
        file.write("\n")  # now it is a line, and wrong
    with pytest.raises(DataError, match=r"line 103: not a training log"):
        read_log(torn)


def test_mistakes_are_told(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "log.jsonl").write_text("")
    (tmp_path / "other.json").write_text("[1, 2]\n")
    for path, message in [
        (tmp_path / "nowhere", "nowhere: no such run"),
        (tmp_path / "empty", r"empty: no log\.jsonl in it"),
        (tmp_path / "fresh", "fresh: its log is still empty"),
        (tmp_path / "other.json", r"other\.json, line 1: not a training log"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            plot_runs([run, path], tmp_path / "out.png")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"name it out\.png"):
        plot_runs([run], tmp_path / "out.jpg")
    assert not list(tmp_path.glob("out*"))


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", validations=0)
    assert cli.main(["plot", "a", "-o", "two.png", "b/log.jsonl"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "two.png\n"
    assert captured.err == "captioner: b: no validation yet\n"
    with Image.open("two.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in [(0, 114, 178), (213, 94, 0)]:
        assert (abs(pixels.astype(int) - color).max(-1) < 30).sum() > 100
    assert cli.main(["plot", "a", "-o", "one.svg"]) == 0
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
    assert cli.main(["plot", "a"]) == 0
    assert (tmp_path / "curves.png").exists()
    capsys.readouterr()
    assert cli.main(["plot", "c"]) == 2
    assert "c: no such run folder" in capsys.readouterr().err


def test_a_missing_matplotlib_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run, output = write_run(tmp_path / "run"), tmp_path / "x.png"
    assert cli.main(["plot", str(run), "-o", str(output)]) == 2
    message = "captioner: error: captioner plot needs Matplotlib: pip install 'captioner[plots]'\n"
    assert capsys.readouterr().err == message
    assert not output.exists()
