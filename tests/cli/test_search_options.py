"""The search options of `captioner caption`, from words on the command line to sentences."""

import json

import pytest
from helpers.tiny_files import WORDS, make_photos, save_model

from captioner.api import Captioner, Ensemble
from captioner.checkpoint import load_checkpoint, save_checkpoint
from captioner.cli import main as cli
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "all"
    make_photos(folder, 4)
    return folder


@pytest.fixture
def rows(model, photos, capsys):
    """Runs the command and reads its JSON Lines."""

    def run(*options):
        arguments = ["caption", photos, "-m", model, "--format", "jsonl", "-q", *options]
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return run


def test_words_are_banned_and_required(rows):
    plain = rows("--max-length", 6)
    said = plain[0]["words"][0]
    missing = next(word for word in WORDS if all(word not in row["words"] for row in plain))
    for row in rows("--max-length", 6, "--ban", said, "--require", missing.upper()):
        assert said not in row["words"]
        assert missing in row["words"]


def test_captions_begin_with_the_prefix(rows):
    for options in ((), ("--sample",), ("--beam", 1), ("--diverse", 2, "--num-captions", 2)):
        for row in rows("--max-length", 6, "--prefix", "Two red", *options):
            assert row["words"][:2] == ["two", "red"]
            assert row["caption"].startswith("two red")
            assert len(row["log_probs"]) == len(row["words"]) + row["finished"]


def test_samples_depend_on_the_seed_not_on_the_batch(rows):
    options = ("--sample", "--num-captions", 3, "--max-length", 5, "--top-p", 0.9)

    def texts(*more):
        return [[c["caption"] for c in row["candidates"]] for row in rows(*options, *more)]

    assert texts() == texts("--batch-size", 1)
    assert texts() != texts("--seed", 1)


def test_consensus_is_one_of_the_candidates(rows):
    found = rows("--mbr", 5, "--max-length", 6)
    candidates = rows("--num-captions", 5, "--max-length", 6)
    for row, other in zip(found, candidates, strict=True):
        assert row["caption"] in [c["caption"] for c in other["candidates"]]
        assert "candidates" not in row


def test_other_options_run(rows):
    for row in rows("--diverse", 2, "--num-captions", 4, "--max-length", 4):
        texts = [candidate["caption"] for candidate in row["candidates"]]
        assert 2 <= len(set(texts)) == len(texts) <= 4  # groups may find the same ones
    for row in rows("--no-repeat-ngram", 1, "--max-length", 8, "--length-penalty", "average"):
        assert len(set(row["words"])) == len(row["words"])
        assert row["score"] == pytest.approx(
            sum(row["log_probs"]) / len(row["log_probs"]), abs=1e-4
        )


@pytest.fixture
def evaluated(model, photos, tmp_path, capsys):
    """Runs `captioner evaluate` and reads its captions, photo by photo."""
    references = tmp_path / "captions.jsonl"
    names = sorted(path.name for path in photos.iterdir())
    lines = [json.dumps({"image": name, "captions": ["a dog runs"]}) for name in names]
    references.write_text("\n".join(lines))

    def run(*options):
        results = tmp_path / "results.json"
        arguments = ["evaluate", "--captions", references, "--images", photos, "-m", model]
        arguments += ["--results-out", results, "-q", *options]
        status = cli.main([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert status == 0, err
        return [row["caption"] for row in json.loads(results.read_text())]

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--sample", "--seed", 5, "--temperature", 1.5, "--top-k", 9, "--top-p", 0.9, "--mbr", 3),
        ("--diverse", 2, "--beam", 4, "--no-repeat-ngram", 1, "--length-penalty", "average"),
        ("--ban", "red", "--ban", "cat", "--require", "dog", "--min-length", 3),
        ("--prefix", "two blue"),
    ],
)
def test_evaluation_searches_as_captioning_does(rows, evaluated, options):
    options = (*options, "--max-length", 6)
    assert evaluated(*options) == [row["caption"] for row in rows(*options)]
    assert evaluated(*options) != evaluated("--max-length", 6)  # the options tell


def test_scoring_a_file_takes_no_search(capsys):
    for option in (
        *(("--diverse", "2"), ("--require", "dog"), ("--prefix", "a dog")),
        *(("--seed", "0"), ("--sample",)),
    ):
        assert cli.main(["evaluate", "--captions", "a", "--results", "b", *option]) == 2
        assert f"{option[0]} is for scoring a model" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--require", "gras"), ("--prefix", "the gras")])
def test_an_unknown_word_is_named(model, photos, capsys, option):
    arguments = ["caption", photos, "-m", model, *option]
    assert cli.main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "'gras'" in message
    assert "near: grass" in message


def test_a_model_with_itself_says_the_same(rows, model, photos):
    alone, together = rows("--max-length", 6), rows("--max-length", 6, "-m", model)
    assert [row["caption"] for row in together] == [row["caption"] for row in alone]
    picture = next(photos.iterdir())
    one = Captioner.from_pretrained(model)
    twice = Ensemble.load([model, model])
    assert twice.score(picture, "a dog runs").log_probs == pytest.approx(
        one.score(picture, "a dog runs").log_probs, abs=1e-5
    )


def test_models_of_different_vocabularies_are_refused(model, tmp_path):
    network, header = load_checkpoint(model)
    words = [word for word in header.vocabulary.to_list() if word != "dog"]
    other = type(header)(
        config=header.config,
        vocabulary=Vocabulary.from_list([*words, "wolf"]),
        preprocess=header.preprocess,
    )
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, other, network.state_dict())
    with pytest.raises(ConfigError, match=r"model 2 .* lacks 'dog'"):
        Ensemble.load([model, path])
