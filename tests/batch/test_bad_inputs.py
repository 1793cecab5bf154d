"""Everything that `scripts/bad_inputs.py` thinks of is captioned or reported, in bounded memory."""

import csv
import json
import os
import sys

import pytest
from helpers.scripts import load_script
from helpers.tiny_files import environment

from captioner.cli import main as cli

GIGABYTE = 1024**3

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links and odd names need POSIX")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder and the names of what is in it."""
    folder = tmp_path_factory.mktemp("corpus") / "files"
    return folder, load_script("scripts/bad_inputs.py").make(folder)


def check(captioned, failed, names):
    """Every name once, in order, on the side that it says itself."""
    assert sorted([*captioned, *failed]) == sorted(names)
    assert [name for name in captioned if name.startswith("bad-")] == []
    assert [name for name in failed if name.startswith("ok-")] == []


def test_the_corpus_is_large(corpus):
    _, names = corpus
    assert len(names) >= 200
    assert len({name.rsplit(".", 1)[-1].lower() for name in names}) >= 8


@pytest.mark.slow
def test_the_command_survives_all_of_it(corpus, model, tmp_path):
    folder, names = corpus
    command = [sys.executable, "-m", "captioner", "caption", str(folder), "--model", str(model)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--errors", str(tmp_path / "bad.jsonl")]
    measure = load_script("benchmarks/memory.py").measure
    with open(tmp_path / "stderr", "wb") as errors:
        status, peak = measure([*command, "--workers", "8"], stderr=errors, env=environment())
    said = (tmp_path / "stderr").read_text()
    assert status == 1, said  # negative: it took ten minutes
    assert peak < 2 * GIGABYTE

    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")]
    assert [os.path.basename(row["image"]) for row in rows] == names  # sorted, as a folder's are
    failed = [row for row in rows if "error" in row]
    check(
        [os.path.basename(row["image"]) for row in rows if "caption" in row],
        [os.path.basename(row["image"]) for row in failed],
        names,
    )
    assert all(row["error"] and row["error"].isprintable() for row in failed)
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").open(encoding="utf-8")]
    assert bad == failed

    # Nothing but our own lines: the summary, then failures by kind.
    first, *kinds = said.splitlines()
    assert first.startswith(f"{len(names) - len(failed)} captioned, {len(failed)} failed, ")
    assert all(line.startswith("  ") and " × " in line for line in kinds)


@pytest.fixture(scope="module")
def small(corpus, tmp_path_factory):
    """The same without what takes seconds to decode."""
    folder, names = corpus
    heavy = ("large", "bomb")
    few = tmp_path_factory.mktemp("small")
    for name in names:
        if not any(word in name for word in heavy):
            os.symlink(folder / name, few / name)
    return few


@pytest.mark.parametrize("ending", ["csv", "txt", "json"])
def test_in_other_formats(small, model, tmp_path, capsys, ending):
    output = tmp_path / f"out.{ending}"
    arguments = [str(small), "-o", str(output), "--model", str(model), "--beam", "1"]
    assert cli.main(["caption", *arguments]) == 1
    told = capsys.readouterr().err
    names = [path.name for path in small.iterdir()]
    if ending == "csv":
        with open(output, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert all(bool(row["caption"]) != bool(row["error"]) for row in rows)
        assert len(rows) == len(names)
        names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        rows = [(row["image"], row["error"]) for row in rows]
    elif ending == "json":
        rows = [(row["image"], row.get("error")) for row in json.loads(output.read_text("utf-8"))]
    else:  # failures are told, one line each
        lines = output.read_text("utf-8").split("\n")[:-1]
        assert all(line.count("\t") == 1 for line in lines)
        wrong = [line for line in told.split("\n") if line.startswith("captioner: ")]
        assert len(lines) + len(wrong) == len(names)
        assert all("/ok-" not in line for line in wrong)
        assert all("/bad-" not in line for line in lines)
        return
    check(
        [name.removeprefix(f"{small}/") for name, error in rows if not error],
        [name.removeprefix(f"{small}/") for name, error in rows if error],
        names,
    )


def test_sidecars_beside_odd_names(small, model, capsys):
    """Images of one name but for the ending do not share a sidecar."""
    arguments = [str(small), "--format", "sidecar", "--model", str(model), "--beam", "1"]
    assert cli.main(["caption", *arguments]) == 1
    told = capsys.readouterr().err
    sidecars = {path.name.removesuffix(".txt") for path in small.glob("*.txt")}
    assert f"\n{len(sidecars)} captioned, " in told
    for path in small.iterdir():
        if path.name.startswith(("ok-", "-")) and path.suffix != ".txt":
            assert sidecars & {path.name, os.path.splitext(path.name)[0]}
