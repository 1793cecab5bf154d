"""The commands other than `caption`."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import MODEL
from helpers.tiny_files import WORDS, environment

from captioner import __version__
from captioner.cli import main as cli
from captioner.cli.evaluate import evaluate_model
from captioner.errors import ConfigError
from captioner.models.caption_model import CaptionModel


def test_help_is_quick_and_complete():
    program = (
        "import sys; from captioner.cli.main import main; status = main(['--help']);"
        "heavy = {'torch', 'numpy', 'PIL', 'yaml', 'tqdm'} & set(sys.modules);"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("caption", "train", "evaluate", "info"))


def test_version_and_unknown_commands(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"captioner {__version__}\n"
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, "evaluate" in err) == ("", True)  # the commands
    wrong = {
        "there is no command 'draw'": ["draw"],
        "there is no command 'captoin'; did you mean caption?": ["captoin"],
        "unknown option --bem; did you mean --beam?": ["caption", "a.jpg", "--bem", "3"],
        "unknown option --jsn; did you mean --json?": ["info", "--jsn=1"],
        "unexpected argument 'b'": ["info", "a", "b"],
    }
    for message, arguments in wrong.items():
        assert cli.main(arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.startswith(f"captioner: error: {message} (")) == (
            "",
            1,
            True,
        )


def test_help_shows_examples_that_can_be_run():
    for name, command in cli.build_parser()[1].items():
        lines = [
            line for line in command.format_help().splitlines() if line.startswith("  captioner")
        ]
        assert len(lines) == 2
        for line in lines:
            command.parse_intermixed_args(line.split()[2:])
            assert line.split()[1] == name


def test_info(model, capsys):
    assert cli.main(["info", str(model)]) == 0
    text = capsys.readouterr().out
    for piece in (MODEL.encoder.name, "4 × 4", "additive 8", f"{len(WORDS) + 4} words", "cider"):
        assert piece in text
    assert cli.main(["info", str(model), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["bytes"] == model.stat().st_size
    assert info["parameters"] == sum(
        tensor.numel() for tensor in CaptionModel(MODEL, len(WORDS) + 4).state_dict().values()
    )
    assert set(WORDS) < set(info["vocabulary"])
    assert info["record"]["validation"] == {"cider": 0.5}
    assert cli.main(["info", str(model.parent)]) == 2
    assert capsys.readouterr().err.startswith("captioner: error: ")


def captions_file(photos, path):
    lines = [
        {"image": str(photo), "captions": ["A dog runs.", "The red ball."], "split": "val"}
        for photo in sorted(photos.glob("*.png"))
    ]
    Path(path).write_text("\n".join(map(json.dumps, lines)))


def test_evaluate(model, photos, capsys):
    captions_file(photos, "captions.jsonl")
    arguments = ["--captions", "captions.jsonl", "--images", ".", "--model", str(model)]
    files = ["--json", "figures.json", "--results-out", "results.json"]
    assert cli.main(["evaluate", *arguments, *files, "--split", "val", "--beam", "2"]) == 0
    captured = capsys.readouterr()
    assert "BLEU-4" in captured.out
    assert captured.err == ""
    assert json.loads(Path("figures.json").read_text())["photos"] == 5
    assert len(json.loads(Path("results.json").read_text())) == 5
    assert cli.main(["evaluate", *arguments, "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "auto"),
        (["--instances", "x.json"], "torch"),
        (["--instances", "x.json", "--backend", "onnx"], "onnx"),
        (["--instances", "x.json", "-m", "MODEL"], "auto"),  # no saliency of an ensemble
        (["--faithfulness", "3"], "torch"),
    ],
)
def test_what_needs_gradients_is_computed_by_pytorch(model, photos, monkeypatch, options, expected):
    def load(paths, *, backend, **_):
        raise ConfigError(f"backend {backend}")

    monkeypatch.setattr("captioner.batch.runner.load_captioner", load)
    captions_file(photos, "captions.jsonl")
    parser = cli.build_parser()[0]
    options = [str(model) if each == "MODEL" else each for each in options]
    arguments = ["evaluate", "--captions", "captions.jsonl", "--images", ".", "-m", str(model)]
    with pytest.raises(ConfigError, match=f"backend {expected}$"):
        evaluate_model(parser.parse_args([*arguments, *options]))


def test_train(photos, capsys, monkeypatch):
    """Arguments and output only: the loop has tests of its own."""
    from captioner.cli import train as command

    class Trainer:
        total_steps = 10

        def __init__(self, config, *, resume):
            self.config, self.step = config, 10 if resume else 4

        def run(self):
            logging.getLogger("captioner.training").info("epoch 1")
            return {"cider": float(self.config.optim.epochs)}

    monkeypatch.setattr(command, "Trainer", Trainer)
    Path("tiny.yaml").write_text("out: runs/tiny\n")
    arguments = ["train", "tiny.yaml", "--resume", "optim.epochs=3", "seed=1"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out": "runs/tiny", "step": 10, "cider": 3.0}
    assert captured.err == "captioner: epoch 1\n"
    assert cli.main(["train", "tiny.yaml"]) == 130  # stopped before the end
    assert cli.main(["train", "tiny.yaml", "optim.epoch=3"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert cli.main(["train", "none.yaml"]) == 2


def test_home_is_expanded_where_a_shell_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # of Windows
    monkeypatch.chdir(tmp_path)
    _, commands = cli.build_parser()
    argv = ["~/a.jpg", "--output=~/x.csv", "--model=~/m", "--attention=~", "--ban=~", "-m", "a~"]
    arguments = cli._parse(commands["caption"], argv)
    assert arguments.paths == [str(tmp_path / "a.jpg")]
    assert arguments.output == str(tmp_path / "x.csv")
    assert arguments.model == [str(tmp_path / "m"), "a~"]
    assert (arguments.attention, arguments.ban) == (str(tmp_path), ["~"])
    (tmp_path / "~").mkdir()
    assert cli._parse(commands["caption"], ["~"]).paths == ["~"]  # it is there


def test_completion_of_a_shell(monkeypatch, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["--print-completion", "zsh"]) == 0
    assert "--beam" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert "pip install 'captioner[completion]'" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [(["eval"], "evaluate"), (["caption", "--be"], "--beam"), (["info", "phot"], "photos")],
)
def test_completion_in_bash(photos, capsys, typed, completed):
    pytest.importorskip("shtab")
    assert cli.main(["--print-completion", "bash"]) == 0
    words = f"COMP_WORDS=(captioner {' '.join(typed)}); COMP_CWORD={len(typed)}"
    script = f'{capsys.readouterr().out}\n{words}; _shtab_captioner; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == completed, done.stderr
