"""Shards: by hand and under torchrun, the output is that of one process, or there is none."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fake_captioner import FakeCaptioner, make_photos, save
from helpers.tiny_files import environment
from helpers.tiny_files import make_photos as make_pictures

from captioner.batch.item import Item
from captioner.batch.shard_files import merge_shards
from captioner.batch.sharding import RankGroup, Shard, ShardAssignment, find_shard
from captioner.cli import caption as command
from captioner.cli import main as cli
from captioner.errors import CaptionerError
from captioner.utils.device import resolve_device

PLACES = ["photos", "more", "missing.png", "photos/0.png"]  # 16 photos
BATCH = ["--batch-size", "3"]


class Fake(FakeCaptioner):
    """Its captions tell the photo; the scores are still those of the batch."""

    def caption(self, source, score):
        caption = super().caption(source, score)
        text = f'a "{os.path.basename(os.fsdecode(source))!r}", seen'
        captions = [replace(caption, text=text), replace(caption, text=f"{text} again", score=-1.5)]
        return replace(captions[0], candidates=tuple(captions))


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def caption(capsys, monkeypatch):
    """Run `captioner caption` with a fake model -> (status, stderr)."""

    def call(*arguments, captioner=None):
        monkeypatch.setattr(command, "load_captioner", lambda **options: captioner or Fake())
        status = cli.main(["caption", *map(str, arguments)])
        return status, capsys.readouterr().err

    return call


@pytest.fixture
def photos(tmp_path):
    """Two folders with photos of the same names; one photo in each is none."""
    for folder in ("photos", "more"):
        make_photos(tmp_path / folder)
    (tmp_path / "photos" / "6.png").rename(tmp_path / "photos" / os.fsdecode(b"6\n\xe9,.png"))
    for folder in ("photos", "more"):
        (tmp_path / folder / "5.png").rename(tmp_path / folder / "000005.png")


def shards(caption, count, output, *options, paths=PLACES):
    return [
        caption(*paths, *BATCH, "--shard", f"{index}/{count}", "-o", output, *options)
        for index in range(count)
    ]


# ---------------------------------------------------------------------------------------- dealing


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_photo_is_dealt_once_and_batches_stay_whole(count, batch_size):
    for total in range(23):
        seen = {}
        for index in range(count):
            assignment = ShardAssignment(Shard(index, count), batch_size)
            own = [item.index for item in assignment.items(Item(str(n)) for n in range(total))]
            assert assignment.total == total
            assert assignment.share(total) == len(own)
            assert own == sorted(own)
            for start in range(0, len(own), batch_size):
                batch = own[start : start + batch_size]
                assert batch[0] % batch_size == 0
                assert batch == list(range(batch[0], min(batch[0] + batch_size, total)))
            seen |= dict.fromkeys(own, index)
        assert len(seen) == total
    assert ShardAssignment(Shard(0, count), batch_size).share(None) is None


def test_which_shard(monkeypatch):
    assert find_shard(None) is None
    assert find_shard("2/3") == Shard(2, 3)
    for wrong in ("3/3", "0/0", "-1/3", "1", "1/2/3", "a/b", ""):
        with pytest.raises(CaptionerError, match="--shard"):
            find_shard(wrong)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_shard(None) is None
    assert find_shard("0/2") == Shard(0, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_shard(None) == Shard(1, 4, launched=True)
    with pytest.raises(CaptionerError, match="torchrun"):
        find_shard("0/2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(CaptionerError, match=r"MASTER_ADDR.*--shard"):
        RankGroup(Shard(1, 4, launched=True))


def test_each_local_rank_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device("auto") == torch.device("cuda")
    devices = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(resolve_device("auto").index)
    assert devices == [0, 1, 0]
    assert resolve_device("cpu") == torch.device("cpu")


# ---------------------------------------------------------------------------------------- merging

OUTPUTS = [
    ("out.txt", []),
    ("out.jsonl", ["--attention-json"]),
    ("out.csv", ["--num-captions", "2"]),
    ("out.json", []),
    ("out.results.json", ["--format", "coco"]),
    ("out.parquet", []),
]


@pytest.mark.parametrize(("name", "options"), OUTPUTS)
@pytest.mark.parametrize("count", [2, 3, 9])  # six batches: some of nine shards have none
def test_merged_shards_equal_one_process(caption, photos, name, options, count, capsys):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    options = [*options, "--attention", "maps"]
    status, summary = caption(*PLACES, *BATCH, *options, "--errors", "bad.jsonl", "-o", name)
    maps = {path: path.read_bytes() for path in Path("maps").rglob("*.png")}
    whole, failures = Path(name).read_bytes(), Path("bad.jsonl").read_bytes()
    for path in (Path(name), Path("bad.jsonl"), *maps):
        path.unlink()

    statuses = [status for status, _ in shards(caption, count, name, *options)]
    assert status == 1
    assert max(statuses) == 1
    assert not Path(name).exists()
    assert cli.main(["merge", name, "--errors", "bad.jsonl"]) == 1
    assert Path(name).read_bytes() == whole
    assert Path("bad.jsonl").read_bytes() == failures
    lines = summary.splitlines()
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("  ")] == [
        line for line in lines if line.startswith("  ")
    ]
    assert not list(Path().glob("*.shards"))
    assert {path: path.read_bytes() for path in Path("maps").rglob("*.png")} == maps


def test_the_output_may_be_called_as_a_shard_file(caption, photos):
    names = [f"missing/{number:06}.png" for number in range(4000)]  # more rows than a read buffers
    Path("names.txt").write_text("\n".join(names))
    caption("names.txt", *BATCH, "-o", "one.jsonl")
    shards(caption, 2, "0.jsonl", paths=["names.txt"])
    assert merge_shards("0.jsonl").failed == len(names)
    assert Path("0.jsonl").read_bytes() == Path("one.jsonl").read_bytes()


def test_an_image_id_occurs_once_in_all_shards(caption, photos):
    rows = [("photos/0.png", 7), ("photos/1.png", 8), ("photos/3.png", 9), ("photos/4.png", 7)]
    Path("list.csv").write_text("image,id\n" + "".join(f"{name},{id}\n" for name, id in rows))
    options = ["list.csv", "--batch-size", "1", "--format", "coco"]
    assert caption(*options, "-o", "one.json")[0] == 1
    for index in (1, 0):
        caption(*options, "-o", "two.json", "--shard", f"{index}/2", "--resume")
    # Resuming a shard gives the same again.
    part = Path("two.json.shards/1.jsonl")
    whole = part.read_bytes()
    part.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    caption(*options, "-o", "two.json", "--shard", "1/2", "--resume")
    assert part.read_bytes() == whole
    assert merge_shards("two.json").failed == 1
    assert Path("two.json").read_bytes() == Path("one.json").read_bytes()


def test_drawn_sentences_are_those_of_one_process(model, tmp_path, capsys):
    make_pictures(tmp_path / "pictures", 11)
    options = ["pictures", "--sample", "--num-captions", "2", "--model", str(model), "-q", *BATCH]
    assert cli.main(["caption", *options, "-o", "one.jsonl"]) == 0
    for index in (1, 0):  # in any order
        assert cli.main(["caption", *options, "-o", "two.jsonl", "--shard", f"{index}/2"]) == 0
    assert cli.main(["merge", "two.jsonl", "-q"]) == 0
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
    assert capsys.readouterr().err == ""


def test_a_merge_refuses_what_is_not_complete(caption, photos, capsys):
    Path("out.jsonl").write_text("what was there\n")

    def refused(pattern):
        with pytest.raises(CaptionerError, match=pattern):
            merge_shards("out.jsonl")
        assert Path("out.jsonl").read_text() == "what was there\n"

    refused("no parts")
    caption(*PLACES, *BATCH, "-o", "out.jsonl", "--shard", "0/3", "--overwrite")
    refused("3 shards these are not done: 1, 2;")
    status, told = caption(*PLACES, *BATCH, "-o", "out.jsonl", "--shard", "2/3", "--overwrite")
    assert "2 of 3 shards are done" in told
    stopped = Fake(stop_after=2)
    options = ["-o", "out.jsonl", "--shard", "1/3"]
    assert caption(*PLACES, *BATCH, *options, "--overwrite", captioner=stopped)[0] == 130
    refused("these are not done: 1;")
    # The shard comes back, but somebody has added photos meanwhile.
    save(Path("zoo/1.png"))
    before = Path("out.jsonl.shards/1.jsonl").read_bytes()
    status, told = caption(*PLACES, "zoo", *BATCH, *options, "--resume")
    assert (status, "other settings (sources)" in told) == (2, True)
    save(Path("more/zoo.png"))
    caption(*PLACES, *BATCH, *options, "--resume")
    refused("different photos")
    Path("more/zoo.png").unlink()
    part = Path("out.jsonl.shards/1.jsonl")
    part.write_bytes(before)
    _, told = caption(*PLACES, *BATCH, *options, "--resume")
    assert "all 3 shards are done: captioner merge out.jsonl" in told
    whole = part.read_bytes()
    rows = whole.splitlines(keepends=True)
    part.write_bytes(b"".join([*rows[:2], *rows[3:]]))
    refused("do not fit together at photo 5; all|at photo 5: .*still in out.jsonl.shards")
    part.write_bytes(whole.replace(b'"image"', b'"imago"', 1))
    refused("damaged")
    part.write_bytes(whole[:-1])
    refused("not done: 1")
    part.write_bytes(whole)
    assert merge_shards("out.jsonl").captioned == 13
    caption(*PLACES, *BATCH, "-o", "one.jsonl")
    assert Path("out.jsonl").read_bytes() == Path("one.jsonl").read_bytes()


def test_a_full_disk_while_merging_keeps_everything(caption, photos):
    resource = pytest.importorskip("resource", reason="needs limits on the size of files")
    shards(caption, 2, "out.json")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CaptionerError, match=r"cannot write .* still in out.json.shards"):
            merge_shards("out.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not Path("out.json").exists()
    merge_shards("out.json")
    caption(*PLACES, *BATCH, "-o", "one.json")
    assert Path("out.json").read_bytes() == Path("one.json").read_bytes()


# --------------------------------------------------------------------------------------- resuming


def test_a_part_resumes_from_any_byte(caption, photos):
    options = [*PLACES, *BATCH, "-o", "out.csv", "--shard", "1/2"]
    caption(*options)
    part = Path("out.csv.shards/1.jsonl")
    whole = part.read_bytes()
    for end in range(0, len(whole) + 1, 37):
        part.write_bytes(whole[:end])
        caption(*options, "--resume")
        assert part.read_bytes() == whole


def test_resuming_needs_the_same_command(caption, photos):
    options = [*PLACES, *BATCH, "-o", "out.jsonl"]
    stopped = Fake(stop_after=2)
    status, told = caption(*options, "--shard", "1/3", captioner=stopped)
    assert (status, "--resume" in told) == (130, True)
    part = Path("out.jsonl.shards/1.jsonl")
    before = part.read_bytes()
    wrong = {
        "exists already: add --resume": [*options, "--shard", "1/3"],
        "parts of 3 shards, not 2": [*options, "--shard", "1/2", "--resume"],
        "parts of 3 shards, not 4": [*options, "--shard", "0/4"],
        "other settings (search)": [*options, "--shard", "1/3", "--resume", "--beam", "5"],
        "other settings (backend)": [*options, "--shard", "0/3", "--backend", "onnx"],
        "other settings (model)": [*options, "--shard", "0/3", "-m", "other.safetensors"],
        "other settings (batch_size)": [*options, "--shard", "1/3", "--resume", "--batch-size=4"],
        "other settings (format)": [*options, "--shard", "0/3", "--format", "csv"],
        "other settings (sources)": ["more", *BATCH, "-o", "out.jsonl", "--shard", "1/3"],
    }
    for message, arguments in wrong.items():
        status, told = caption(*arguments)
        assert (status, message in told) == (2, True), told
    assert part.read_bytes() == before
    # Overwriting in fewer shards: the parts that are left over must not be merged.
    shards(caption, 3, "out.jsonl", "--overwrite")
    caption(*options, "--shard", "0/2", "--overwrite")
    assert cli.main(["merge", "out.jsonl"]) == 2
    caption(*options, "--shard", "1/2", "--overwrite")
    assert cli.main(["merge", "out.jsonl"]) == 1
    for mode, expected in (([], 2), (["--resume"], 0)):  # finished: nothing is left to resume
        status, told = caption(*options, "--shard", "0/2", *mode)
        assert (status, "--overwrite writes it anew" in told) == (expected, True)


def test_what_shards_cannot_do(caption, photos):
    wrong = {
        "add -o": ["photos", "--shard", "0/2"],
        "standard input": ["-", "--shard", "0/2", "-o", "x.csv"],
        "merge --errors": ["photos", "--shard", "0/2", "-o", "x.csv", "--errors", "bad.jsonl"],
        "I/N": ["photos", "--shard", "2/2", "-o", "x.csv"],
        "--format": ["photos", "--shard", "0/2", "-o", "x.docx"],
        "no regular file": ["photos", "--shard", "0/2", "-o", "photos", "--format", "csv"],
        "Ray deals": ["photos", "--shard", "0/2", "-o", "x", "--engine", "ray"],
    }
    for message, arguments in wrong.items():
        status, told = caption(*arguments)
        assert (status, message in told) == (2, True), told
    assert not list(Path().glob("x*"))


def test_sidecars_of_shards(caption, photos):
    save(Path("photos/3.jpg"))  # before 3.png, which another shard has
    for index in (1, 0):
        caption("photos", "--format", "sidecar", "--batch-size", "1", "--shard", f"{index}/2")
    assert "3.jpg" in Path("photos/3.txt").read_text()
    assert "3.png" in Path("photos/3.png.txt").read_text()
    assert len(list(Path("photos").glob("*.txt"))) == 7
    told = caption("photos", "--format", "sidecar", "--shard", "0/1", "--resume")[1]
    assert "7 kept" in told


# --------------------------------------------------------------------------------------- torchrun


def processes_of(launcher):
    """Rank -> process id, of those that a launcher has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            variables = dict(
                pair.split(b"=", 1)
                for pair in (entry / "environ").read_bytes().split(b"\0")
                if b"=" in pair
            )
        except OSError:
            continue
        if int(parent) == launcher.pid and b"RANK" in variables:
            found[int(variables[b"RANK"])] = int(entry.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks through /proc")
def test_torchrun_killed_and_resumed_equals_one_process(model, tmp_path, capsys, monkeypatch):
    make_pictures(tmp_path / "photos", 90)
    for broken in (4, 5, 13):  # all of them rank 1's
        (tmp_path / "photos" / f"{broken:02}.png").write_bytes(b"")
    options = ["photos", "--batch-size", "4", "--model", str(model)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli.main(["caption", *options, "-o", "one.jsonl", "--errors", "one.bad"]) == 1
    finally:
        torch.set_num_threads(threads)
    summary = capsys.readouterr().err

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start = ["-m", "captioner", "caption", *options, "-o", "two.jsonl", "--errors", "two.bad"]
    variables = {**environment(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*launch, *start], stderr=subprocess.PIPE, env=variables)
    part = tmp_path / "two.jsonl.shards" / "1.jsonl"
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    os.kill(processes_of(process)[1], signal.SIGKILL)
    process.communicate()
    assert process.returncode == 1
    assert not (tmp_path / "two.jsonl").exists()
    kept = part.read_bytes().count(b"\n") - 1
    assert 4 < kept < 44

    done = subprocess.run(
        [*launch, *start, "--resume"], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 1, done.stderr  # three photos failed
    assert Path("two.jsonl").exists(), done.stderr
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
    assert Path("two.bad").read_bytes() == Path("one.bad").read_bytes()
    assert not list(tmp_path.glob("*.shards"))
    assert done.stdout == ""
    assert done.stderr.count(" captioned, ") == 1  # one summary
    numbers = json.loads(Path("two.bad").read_text().splitlines()[0])
    assert numbers["image"] == "photos/04.png"
    assert "87 captioned, 3 failed" in summary
    assert "kept from an earlier run" in done.stderr

    # What torchrun --max-restarts would do now: nothing, there is a result with failures in it.
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": 1}.items():
        monkeypatch.setenv(name, str(value))
    before = Path("two.jsonl").stat()
    assert cli.main(["caption", *options, "-o", "two.jsonl"]) == 1
    assert Path("two.jsonl").stat() == before
