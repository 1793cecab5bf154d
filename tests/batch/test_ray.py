"""`--engine ray`: what it plans, carries and puts together; Ray itself, with a killed actor."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_files import environment, make_photos

from captioner.batch import ray
from captioner.batch.journal import PartFolder, part_name
from captioner.batch.ray import CaptionActor, Pool, choose_pool, plan, read_pieces
from captioner.batch.sources import open_sources
from captioner.cli import main as cli
from captioner.cli.options import run_settings
from captioner.errors import CaptionerError, ConfigError

# --------------------------------------------------------------------------------------- on workers


def pieces(units, size=3):
    """What workers read, in another working directory and in another process."""
    units = pickle.loads(pickle.dumps(list(units)))
    folder = os.getcwd()
    os.chdir("/")
    try:
        return [list(read_pieces(unit, folder, size)) for unit in units]
    finally:
        os.chdir(folder)


def test_photos_survive_the_journey(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        '{"image": "plain.jpg", "id": 7}',
        '{"image": "text.jpg", "id": "seven"}',
        json.dumps({"image": "caf\udce9.jpg"}),  # a file name that is not UTF-8
        json.dumps({"image": "lone \ud800 in a list\n"}),
        "no JSON",
    ]
    Path("list.jsonl").write_text("\n".join(lines))
    expected = list(open_sources(["list.jsonl"]))
    ((first, second),) = pieces(plan(["list.jsonl"], ""))
    found = [*first, *second]
    assert [len(first), len(second)] == [3, 2]
    assert [(i.name, i.id, i.error) for i in found] == [(i.name, i.id, i.error) for i in expected]
    assert found[0].source == str(tmp_path / "plain.jpg")


def test_an_archive_is_read_like_by_the_local_engine(photos, monkeypatch):
    archive = make_archive("shard.tar", photos)
    ((first, second),) = pieces(plan([archive], ""))
    assert [*first, *second] == list(open_sources([archive]))
    monkeypatch.setattr(ray, "_PIECE_BYTES", 1)
    assert list(map(len, *pieces(plan([archive], "")))) == [1] * 5


def test_an_actor_captions_a_piece_or_tells_why_it_cannot(photos, model):
    items = list(open_sources([str(photos), "missing.png"]))[3:]
    given = {"paths": [str(model)], "device": "cpu", "precision": "fp32"}
    threads = torch.get_num_threads()
    rows, error = CaptionActor(given, threads, False, {"batch_size": 2, "beam": 1}).caption(items)
    assert error is None
    assert [json.loads(row)["image"] for row, _ in rows] == [item.name for item in items]
    assert [error for _, error in rows] == [None, None, "no such file"]
    given["paths"] = ["gone.safetensors"]
    found = CaptionActor(given, threads, False, {}).caption(items)
    assert found == ([], "no model file gone.safetensors")


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "pool"),
    [
        ([{"CPU": 1}], "auto", None, Pool(1, 1)),
        ([{"CPU": 3}], "auto", None, Pool(1, 3)),
        ([{"CPU": 6}], "cpu", None, Pool(2, 3)),
        ([{"CPU": 16}, {"CPU": 8}], "auto", None, Pool(6, 4)),
        ([{"CPU": 16}], "auto", 2, Pool(2, 8)),
        ([{"CPU": 2}], "auto", 3, Pool(3, 0.66)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 32}], "auto", None, Pool(4, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], "cpu", None, Pool(4, 4)),
        ([{"CPU": 64, "GPU": 2}], "cuda", None, Pool(2, 8, 1)),
    ],
)
def test_a_cluster_is_shared_so_that_all_workers_fit(nodes, device, workers, pool):
    assert choose_pool(nodes, device, workers) == pool
    if not pool.gpus:
        assert pool.size * pool.cpus <= sum(node["CPU"] for node in nodes)


def test_gpus_that_are_not_there():
    with pytest.raises(ConfigError, match="no GPU"):
        choose_pool([{"CPU": 8}], "cuda", None)


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_parts_are_kept_and_strangers_refused(tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    names = [part_name(0, ["a", "b"]), part_name(1, ["c"])]
    rows = ['{"image": "a", "caption": "x"}', '{"image": "b", "error": "broken"}']
    parts = PartFolder(tmp_path / "out", form, "new")
    assert parts.begin(names) == set()
    parts.write(names[0], rows)
    with pytest.raises(CaptionerError, match="another captioner"):
        PartFolder(tmp_path / "out", form, "resume")
    parts.close()
    with pytest.raises(CaptionerError, match="--resume"):
        PartFolder(tmp_path / "out", form, "new")
    parts = PartFolder(tmp_path / "out", form, "resume")
    assert parts.begin(names) == {names[0]}
    assert list(parts.previous_errors(names[0])) == [None, "broken"]
    with pytest.raises(CaptionerError, match="not a part of these"):
        parts.begin([part_name(0, ["a", "z"]), names[1]])
    parts.close()
    spark = tmp_path / "out" / "part-00000-6a0f.snappy.parquet"
    spark.touch()  # of another program
    parts = PartFolder(tmp_path / "out", form, "overwrite")
    assert parts.begin(names) == set()
    parts.close()
    assert list((tmp_path / "out").iterdir()) == [spark]


def test_part_names_tell_what_is_inside():
    assert part_name(2, ["ab", "c"]) != part_name(2, ["a", "bc"])
    assert part_name(2, ["a\udce9"]).startswith("part-000002-")


def test_part_names_tell_how_they_were_made(photos):
    def names(*options, **search):
        arguments = cli.build_parser()[1]["caption"].parse_args([*options, *sources])
        return [unit.name for unit in plan(sources, json.dumps(run_settings(arguments, search)))]

    sources = [str(photos), make_archive("shard.tar", photos)]
    expected = names()
    assert len(expected) == 2
    assert names() == names("--workers", "2", "--batch-size", "3") == expected
    others = [names(beam=5), names("-m", "x"), names("--column", "img"), names("--attention-json")]
    others.append(names("--backend", "torch"))
    assert all(set(other).isdisjoint(expected) for other in others)


# ------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "add -o FOLDER"),
        (["-o", "out", "--format", "csv"], "jsonl or parquet, not csv"),
        (["-o", "out", "--attention", "maps"], "--attention does not go"),
        (["-o", "out", "--errors", "e.jsonl"], "--errors does not go"),
        (["-o", "out", "--fail-fast"], "--fail-fast does not go"),
        (["-o", "out", "--write-metadata", "copies"], "--write-metadata does not go"),
        (["-o", "out", "--device", "cuda:1"], "gives each worker its GPU"),
        (["-o", "out", "--require", "zebra"], "'zebra'"),
        (["-o", "photos"], "choose another output"),
    ],
)
def test_what_makes_no_sense_is_refused(photos, model, capsys, options, message):
    assert cli.main(["caption", "photos", "--engine", "ray", "-m", str(model), *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_ray_the_message_says_how_to_get_it(photos, model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["caption", "photos", "--engine", "ray", "-m", str(model), "-o", "out"]
    assert cli.main(command) == 2
    assert "pip install 'captioner[ray]'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_cluster_that_is_not_there(photos, model, capsys):
    pytest.importorskip("ray", reason="needs ray: pip install 'captioner[ray]'")
    command = ["caption", "photos", "--engine", "ray", "-m", str(model), "-o", "out"]
    assert cli.main([*command, "--ray-address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


def test_ray_options_need_ray(photos, capsys):
    assert cli.main(["caption", "photos", "--ray-workers", "2"]) == 2
    assert "--engine ray" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the actor in /proc")
def test_the_same_captions_though_an_actor_is_killed_and_a_part_is_lost(tmp_path, model):
    pytest.importorskip("ray", reason="needs ray: pip install 'captioner[ray]'")
    sources = make_sources(tmp_path)
    # Long sentences of a wide beam: an actor must not be done before it can be killed.
    options = ["-m", str(model), "--batch-size", "2", "--beam", "20", "--max-length", "120"]
    caption(tmp_path, [*sources, *options, "-o", "local.jsonl"])
    expected = read_rows([tmp_path / "local.jsonl"])

    on_ray = [*sources, *options, "-o", "out", "--engine", "ray", "--ray-workers", "1"]
    process = caption(tmp_path, on_ray, wait=False)
    out = tmp_path / "out"
    wait_for(lambda: list(out.glob("part-*")) or process.poll() is not None)
    killed = actors(tmp_path)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    left = len(sources) - len(list(out.glob("part-*")))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors  # one photo is none
    assert killed
    assert left
    assert f"{len(expected) - 1} captioned, 1 failed" in errors
    parts = sorted(out.glob("part-*.jsonl"))
    assert same(read_rows(parts), expected)

    whole = parts[-1].read_text()
    parts[-1].unlink()
    process = caption(tmp_path, [*on_ray, "--resume"])
    assert process.returncode == 1
    assert "kept from an earlier run (1 of them failed)" in process.stderr
    assert same(read_rows(sorted(out.glob("part-*.jsonl"))), expected)
    assert sorted(out.glob("part-*.jsonl")) == parts
    assert [row["image"] for row in map(json.loads, whole.splitlines())] == [
        row["image"] for row in read_rows(parts[-1:])
    ]


# ----------------------------------------------------------------------------------------- helpers


def make_sources(folder):
    """A folder with a file that is no photo, archives, and a table, by their relative names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    photos = folder / "photos"
    make_photos(photos, 4)
    files = sorted(photos.iterdir())
    archives = [make_archive(folder / f"{number}.tar", photos) for number in range(6)]
    rows = {"image": [file.read_bytes() for file in files], "id": [10, 11, 12, 13]}
    pq.write_table(pa.table(rows), folder / "table.parquet")
    (photos / "01.png").write_bytes(b"nonsense")
    return ["photos", *(os.path.basename(path) for path in archives), "table.parquet"]


def make_archive(path, photos):
    with tarfile.open(path, "w") as archive:
        for file in sorted(photos.iterdir()):
            archive.add(file, file.name)
    return str(path)


def caption(folder, arguments, wait=True):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "captioner", "caption", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), "CAPTIONER_TEST": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        _, process.stderr = process.communicate(timeout=300)
    return process


def actors(folder):
    """Processes of the actors of the command that runs in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(folder).encode() in (path / "environ").read_bytes()
            if ours and b"CaptionActor" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended, or is another person's
            continue
    return found


def wait_for(condition):
    for _ in range(30000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited five minutes for nothing")


def read_rows(paths):
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def same(rows, expected):
    """Equal, but for the last digits: other batches round otherwise."""
    numbers = ("score", "log_probs")
    for row, other in zip(rows, expected, strict=True):
        plain = [{k: v for k, v in each.items() if k not in numbers} for each in (row, other)]
        if plain[0] != plain[1]:
            return False
        for name in numbers:
            assert row.get(name) == pytest.approx(other.get(name), abs=1e-3)
    return True
