"""The command line: what it prints where, and its exit status."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_files import WORDS, environment, make_photos
from PIL import Image

from captioner.cli import main as cli


@pytest.fixture
def caption(model, capsys):
    """Run `captioner caption` -> (status, stdout, stderr)."""

    def call(*arguments):
        status = cli.main(["caption", *map(str, arguments), "--model", str(model)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


# ---------------------------------------------------------------------------------------- caption


def test_one_photo_prints_its_caption_alone(caption, photos):
    status, out, err = caption(photos / "00.png")
    assert status == 0
    assert out.count("\n") == 1
    assert set(out.split()) <= set(WORDS)
    assert err == ""
    status, out, err = caption(photos / "00.png", "--num-captions", 2, "--beam", 2)
    assert len(set(out.splitlines())) == 2


def test_captions_differ_between_photos(caption, photos):
    """Or else the tests below would see little."""
    _, out, _ = caption(photos, "--format", "jsonl")
    assert len({json.loads(line)["score"] for line in out.splitlines()}) == 5


def test_several_photos_print_names_and_captions(caption, photos):
    odd = photos / "tab\there.png"
    (photos / "00.png").rename(odd)
    status, out, err = caption(odd, photos / "01.png", "--max-length", 3)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [name for name, _ in lines] == [r"photos/tab\there.png", "photos/01.png"]
    assert all(0 < len(text.split()) <= 3 for _, text in lines)
    assert status == 0
    assert err.startswith("2 captioned, 0 failed, ")
    assert caption(odd, photos / "01.png", "--max-length", 3, "--quiet")[1:] == (out, "")


def test_failures_are_told_and_counted(caption, photos):
    (photos / "01.png").write_bytes(b"")
    (photos / "02.png").write_bytes(b"nonsense")
    status, out, err = caption(photos, "missing.jpg")
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        f"photos/0{number}.png" for number in (0, 3, 4)
    ]
    assert "photos/01.png: the file is empty (0 bytes)" in err
    assert "missing.jpg: no such file" in err
    assert "3 captioned, 3 failed, " in err
    assert "1 × not a picture in a known format" in err
    status, out, err = caption("missing.jpg")
    assert (status, out, err) == (1, "", "captioner: missing.jpg: no such file\n")


def test_jsonl_and_csv_have_failures_as_rows(caption, photos):
    (photos / "01.png").write_bytes(b"")
    status, out, err = caption(photos, "--format", "jsonl", "--attention-json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert rows[1] == {"image": "photos/01.png", "error": "the file is empty (0 bytes)"}
    assert np.shape(rows[0]["attention"]) == (len(rows[0]["words"]), 4, 4)
    assert "empty" not in err.splitlines()[0]
    status, out, _ = caption(photos, "--format", "csv", "--num-captions", 2)
    table = list(csv.DictReader(io.StringIO(out)))
    assert table[1]["error"] == rows[1]["error"]
    assert table[0]["caption"] == rows[0]["caption"]
    assert table[0]["caption_2"]


def test_the_format_follows_the_ending(caption, photos):
    results = {}
    for name in ("o.txt", "o.csv", "o.jsonl", "o.json"):
        status, out, _ = caption(photos, "-o", name)
        assert (status, out) == (0, "")
        results[name] = Path(name).read_text()
    rows = json.loads(results["o.json"])
    assert rows == [json.loads(line) for line in results["o.jsonl"].splitlines()]
    assert results["o.txt"].splitlines() == [f"{row['image']}\t{row['caption']}" for row in rows]
    assert len(list(csv.reader(io.StringIO(results["o.csv"])))) == 6
    # The same rows come from standard output.
    assert caption(photos, "--format", "json")[1] == results["o.json"]
    assert caption(photos, "--format", "csv")[1] == results["o.csv"]
    status, _, err = caption(photos, "-o", "o.xyz")
    assert status == 2
    assert "--format" in err


def test_options_may_stand_between_paths(caption, photos):
    status, out, _ = caption(photos / "00.png", "--beam", 1, photos / "01.png", "-q")
    assert (status, out.count("\n")) == (0, 2)


def test_a_photo_that_is_called_like_an_option(photos, model, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    Path("00.png").rename("-o.png")
    command = ["caption", "--model", str(model), "--format", "text", "--quiet"]
    for paths in (["--", "-o.png"], ["01.png", "--", "-o.png"]):
        assert cli.main([*command, *paths]) == 0
        names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
        assert names == [path for path in paths if path != "--"]


def test_wrong_usage(caption, photos, capsys):
    wrong = [
        [photos, "--resume"],
        [photos, "--resume", "--overwrite"],
        [photos, "--beam", "2", "--num-captions", "3"],
        [photos, "--beam", "0"],
        [photos, "--sample", "--beam", "2"],
        [photos, "--top-k", "5"],
        [photos, "--sample", "--diverse", "2"],
        [photos, "--mbr", "4", "--beam", "3"],
        [photos, "--length-penalty", "long"],
        [photos, "--min-length", "9", "--max-length", "3"],
        [photos, "--format", "yaml"],
        [photos, "--format", "sidecar", "-o", "x.txt"],
        [photos, "-o", "x.jsonl", "--errors", "x.jsonl"],
        [photos, "--device", "warp"],
        ["no*.jpg"],
        [],
    ]
    for arguments in wrong:
        status, out, err = caption(*arguments)
        assert (status, out) == (2, ""), arguments
        assert "error: " in err.splitlines()[-1]
        assert "Traceback" not in err
    (photos / "empty").mkdir()
    status, _, err = caption(photos / "empty")
    assert (status, err.startswith("captioner: error: no photos in photos/empty")) == (2, True)
    assert caption(photos / "empty", photos / "00.png")[0] == 0
    assert not list(Path().glob("x*"))
    assert cli.main(["caption", str(photos), "--model", "none.safetensors", "-o", "y.csv"]) == 2
    assert capsys.readouterr().err == "captioner: error: no model file none.safetensors\n"
    assert not Path("y.csv").exists()


def test_sources_that_are_no_images_are_named(caption, photos, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    status, _, err = caption("shards")
    assert (status, "(.tar)" in err, "such as FOLDER/*.tar" in err) == (2, True, True)
    for name, content in {
        "a.zip": b"PK\3\4",
        "b.jpg": b"version https://git-lfs.github.com/",
    }.items():
        (tmp_path / name).write_bytes(content + bytes(60))
    status, _, err = caption("a.zip", "b.jpg", "https://a.org/c.jpg?size=3")
    assert status == 1
    for what in ("zip archive", "`git lfs pull`", "a web address: download the image first"):
        assert what in err
    (photos / "x.mov").touch()
    assert caption(photos)[2].endswith("\n  1 file is no image: .mov\n")


def test_a_source_is_never_overwritten(caption, photos):
    Path("list.jsonl").write_text('{"image": "photos/00.png"}\n')
    before = Path("list.jsonl").read_bytes()
    for option in ("-o", "--errors"):
        status, _, err = caption("list.jsonl", option, "./list.jsonl", "--overwrite")
        assert (status, "among the sources" in err) == (2, True)
    assert Path("list.jsonl").read_bytes() == before


def test_attention_strips(caption, photos):
    status, _, _ = caption(photos, "--attention", photos, "--max-length", 3)
    assert status == 0
    strips = sorted(photos.glob("*.attention.png"))
    assert len(strips) == 5
    for path in strips:
        with Image.open(path) as image:
            assert min(image.size) > 50
    # Our own pictures are not captioned the next time.
    assert caption(photos)[1].count("\n") == 5


def test_font_of_attention_strips(caption, photos, tmp_path):
    """Strips are drawn in the font that is named; one that is none is told before the work."""
    build_font = pytest.importorskip("helpers.fonts").build_font
    font = build_font(tmp_path / "boxes.ttf", "abcdefghijklmnopqrstuvwxyz")
    short = ("--max-length", 3)
    assert caption(photos / "00.png", "--attention", "own", *short)[0] == 0
    assert caption(photos / "00.png", "--attention", "boxes", "--font", font, *short)[0] == 0
    own, boxes = (next(Path(folder).iterdir()).read_bytes() for folder in ("own", "boxes"))
    assert own != boxes
    (tmp_path / "no.ttf").write_text("no font")
    status, _, err = caption(photos, "--attention", "maps", "--font", "no.ttf")
    assert (status, "cannot load the font no.ttf" in err) == (2, True)
    status, _, err = caption(photos, "--font", font)
    assert (status, "--attention DIR" in err) == (2, True)


def test_errors_file(caption, photos):
    (photos / "01.png").write_bytes(b"")
    caption(photos, "-o", "out.csv", "--errors", "bad.jsonl")
    (row,) = map(json.loads, Path("bad.jsonl").read_text().splitlines())
    assert row == {"image": "photos/01.png", "error": "the file is empty (0 bytes)"}
    Image.new("RGB", (9, 9)).save(photos / "01.png")
    assert caption("bad.jsonl")[0] == 0


def test_fail_fast(caption, photos):
    (photos / "02.png").write_bytes(b"")
    status, _, err = caption(photos, "-o", "out.jsonl", "--fail-fast")
    assert status == 1
    assert "stopped at the first failure: photos/02.png" in err
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_says_how_to_go_on(caption, photos, monkeypatch):
    from captioner import streaming

    real = streaming.begin_search

    def begin_search(backends, pixels, options):
        if len(pixels[0]) == 1:  # the last of the five
            raise KeyboardInterrupt
        return real(backends, pixels, options)

    monkeypatch.setattr(streaming, "begin_search", begin_search)
    status, _, err = caption(photos, "-o", "out.jsonl", "--batch-size", 2)
    assert status == 130
    assert "--resume" in err
    assert len(Path("out.jsonl").read_text().splitlines()) == 4


def test_a_closed_pipe_is_silent(caption, photos, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    status = cli.main(["caption", "photos", "--model", "missing"])
    assert status == 2
    status, _, err = caption(photos)
    assert (status, err.replace("captioner: error: no model file missing\n", "")) == (141, "")


def test_names_on_stdin(caption, photos, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"photos/00.png\nphotos/01.png\n")

    monkeypatch.setattr(sys, "stdin", Stdin)
    _, out, _ = caption("-")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["photos/00.png", "photos/01.png"]
    Stdin.buffer = io.BytesIO((photos / "00.png").read_bytes())
    assert caption("-")[1] == caption(photos / "00.png")[1]


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_resumed_equals_uninterrupted_to_the_last_digit(caption, photos, rows):
    make_photos(Path("more"), 5)
    arguments = ["photos", "more", "--batch-size", 2, "-o"]
    caption(*arguments, "whole.jsonl")
    whole = Path("whole.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:rows]) + b'{"ima')
    assert caption(*arguments, "out.jsonl", "--resume")[0] == 0
    assert Path("out.jsonl").read_bytes() == whole


@pytest.mark.parametrize("name", ["out.jsonl", "out.json"])
def test_an_interrupted_run_is_resumed_with_the_same_settings(caption, photos, name):
    (photos / "zz.png").write_bytes(b"")
    arguments = ["photos", "-o", name]
    caption(*arguments, "--fail-fast")
    there = name if name == "out.jsonl" else "out.json.partial"
    before = Path(there).read_bytes()
    for others in (["--beam", 1], ["--num-captions", 2], ["--max-length", 3], ["--sample"]):
        status, _, said = caption(*arguments, "--resume", *others)
        assert status == 2
        assert "was begun with other settings" in said
        assert Path(there).read_bytes() == before
    (photos / "zz.png").unlink()
    assert caption(*arguments, "--resume")[0] == 0
    assert {path.name for path in Path().glob(".out*")} == set()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(caption, model, tmp_path, monkeypatch):
    make_photos(tmp_path / "photos", 32)
    (tmp_path / "photos" / "07.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    arguments = ["photos", "--batch-size", "4", "--attention", "maps"]
    command = [sys.executable, "-m", "captioner", "caption", *arguments, "-o", "out.jsonl"]
    process = subprocess.Popen(
        [*command, "--model", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    output = tmp_path / "out.jsonl"
    while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") > 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] == b""
    rows = output.read_bytes().count(b"\n")
    assert 8 < rows <= 32
    status, _, err = caption(*arguments, "-o", "out.jsonl", "--resume")
    assert status == 1
    assert f"{rows} kept from an earlier run (1 of them failed)" in err
    caption(*arguments[:3], "-o", "whole.jsonl")
    assert output.read_bytes() == Path("whole.jsonl").read_bytes()
    assert len(list(Path("maps").glob("*.attention.png"))) == 31


def test_as_a_program(model, tmp_path):
    make_photos(tmp_path / "photos", 2)
    done = subprocess.run(
        [sys.executable, "-m", "captioner", "caption", "photos", "none.jpg", "-m", str(model)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.returncode == 1
    assert [line.count("\t") for line in done.stdout.splitlines()] == [1, 1]
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "captioner: none.jpg: no such file",
        "2 captioned",
        "  1 × no such file",
    ]
