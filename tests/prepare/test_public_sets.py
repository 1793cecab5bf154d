"""Public data sets from files that a person has: COCO and Flickr in their forms, any layout."""

import json

import pytest

from captioner.cli import main as cli
from captioner.data.annotations import read_captions
from captioner.errors import DataError
from captioner.prepare.public_sets import (
    coco_versions,
    flickr_versions,
    karpathy_ids,
    karpathy_split,
    read_token_file,
)
from captioner.prepare.registry import FileIndex
from captioner.prepare.write import write_versions

VAL, TEST, RESTVAL, TRAIN = 184613, 391895, 522418, 9  # COCO ids of each kind


def test_karpathys_ids():
    val, test = karpathy_ids()
    assert len(val) == len(test) == 5000
    assert not val & test
    assert min(val | test) == 42
    assert max(val | test) == 581929
    # Photos near the beginning of his file, with the splits that it gives them.
    assert [karpathy_split(number) for number in (TEST, RESTVAL, VAL, 60623, TRAIN)] == [
        *("test", "train", "val", "test", "train")
    ]


def test_karpathys_ids_are_those_of_the_list(shared_data):
    for ids, name in zip(karpathy_ids(), ("val", "test"), strict=True):
        text = (shared_data / "coco" / f"karpathy_{name}_ids.txt").read_text("utf-8")
        assert ids == {int(line) for line in text.split()}


def coco_file(path, photos):
    """A COCO captions file of {id: file name}, two captions each."""
    annotations = [
        {"id": 2 * number + k, "image_id": number, "caption": f"Photo {number}, told {k}."}
        for number in photos
        for k in range(2)
    ]
    images = [{"id": number, "file_name": name} for number, name in photos.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}), "utf-8")


def name_of(number, part="val"):
    return f"COCO_{part}2014_{number:012}.jpg"


@pytest.fixture
def coco(tmp_path):
    """Four photos of COCO 2014 in an odd layout."""
    folder = tmp_path / "have"
    coco_file(folder / "some/captions_train2014.json", {TRAIN: name_of(TRAIN, "train")})
    numbers = (VAL, TEST, RESTVAL)
    coco_file(folder / "captions_val2014.json", {number: name_of(number) for number in numbers})
    (folder / "pictures/deep").mkdir(parents=True)
    (folder / "pictures/deep" / name_of(TRAIN, "train")).touch()
    (folder / "pictures" / name_of(VAL)).touch()
    (folder / "pictures" / name_of(TEST)).touch()
    (folder / f"{RESTVAL:012}.jpg").touch()  # as COCO 2017 calls it
    return folder


def splits_of(path):
    return {example.image_id: example.split for example in read_captions(path)}


def test_coco_from_annotation_files(coco, tmp_path, capsys):
    root = tmp_path / "root"
    call = ["prepare", "coco2014", "--root", str(root), "--from", str(coco)]
    assert cli.main(call) == 2
    error = capsys.readouterr().err
    assert "karpathy train: captions of 2 photos where 113,287 are expected" in error
    assert not root.exists()
    assert cli.main([*call, "--partial"]) == 0
    assert "captions_karpathy.jsonl: train 2, val 1, test 1 photos, 8" in capsys.readouterr().out
    # read_captions finds every photo, so the paths are right.
    karpathy = {TRAIN: "train", RESTVAL: "train", VAL: "val", TEST: "test"}
    assert splits_of(root / "captions_karpathy.jsonl") == karpathy
    official = {TRAIN: "train", RESTVAL: "val", VAL: "val", TEST: "val"}
    assert splits_of(root / "captions_official.jsonl") == official


def test_photos_that_are_missing_are_named(coco, tmp_path, capsys):
    (coco / "pictures" / name_of(TEST)).unlink()
    call = ["prepare", "coco2014", "--root", str(tmp_path), "--from", str(coco)]
    assert cli.main(call) == 2
    assert f"1 of 4 photos ({name_of(TEST)})" in capsys.readouterr().err
    assert cli.main([*call, "--partial"]) == 0
    assert TEST not in splits_of(tmp_path / "captions_karpathy.jsonl")


def test_photos_below_the_root_are_named_relative_to_it(coco, tmp_path):
    index = FileIndex([coco])
    write_versions(coco_versions("2014", index), index, coco, partial=True)
    moved = coco.rename(tmp_path / "moved")
    assert len(splits_of(moved / "captions_karpathy.jsonl")) == 4


def test_coco_2017_has_karpathys_split_too(coco, tmp_path):
    for name in ("some/captions_train2014.json", "captions_val2014.json"):
        (coco / name).unlink()
    numbers = (VAL, TEST, RESTVAL, TRAIN)
    coco_file(coco / "captions_train2017.json", {n: f"{n:012}.jpg" for n in numbers[:3]})
    coco_file(coco / "captions_val2017.json", {TRAIN: f"{TRAIN:012}.jpg"})
    versions = {version.name: version for version in coco_versions("2017", FileIndex([coco]))}
    splits = [example.split for example in versions["karpathy"].examples]
    assert splits == ["val", "test", "train", "train"]
    assert [e.split for e in versions["official"].examples] == ["train"] * 3 + ["val"]


def karpathy_json(path, photos):
    """A file in Karpathy's form, of (file name, folder or None, cocoid or None, split)."""
    images = [
        {
            "filename": name,
            **({"filepath": folder, "cocoid": number} if folder else {"imgid": place}),
            "split": split,
            "sentences": [{"raw": f"Photo {name}."}],
        }
        for place, (name, folder, number, split) in enumerate(photos)
    ]
    path.write_text(json.dumps({"images": images, "dataset": "x"}), "utf-8")


def test_coco_from_karpathys_file(coco, tmp_path):
    for name in ("some/captions_train2014.json", "captions_val2014.json"):
        (coco / name).unlink()
    karpathy_json(
        coco / "dataset_coco.json",
        [
            (name_of(VAL), "val2014", VAL, "val"),
            (name_of(RESTVAL), "val2014", RESTVAL, "restval"),
            (name_of(TRAIN, "train"), "train2014", TRAIN, "train"),
        ],
    )
    versions = {version.name: version for version in coco_versions("2014", FileIndex([coco]))}
    assert [e.split for e in versions["karpathy"].examples] == ["val", "train", "train"]
    assert [e.split for e in versions["official"].examples] == ["val", "val", "train"]


def test_no_captions_at_all(tmp_path, capsys):
    (tmp_path / "a.jpg").touch()
    for what, wanted in {
        "coco2014": "captions_train2014.json",
        "coco2017": "dataset_coco.json",
        "flickr8k": "Flickr8k.token.txt",
        "flickr30k": "dataset_flickr30k.json",
    }.items():
        root = str(tmp_path / "root")
        assert cli.main(["prepare", what, "--root", root, "--from", str(tmp_path)]) == 2
        assert wanted in capsys.readouterr().err
    assert cli.main(["prepare", "coco2014", "--root", "r", "--from", str(tmp_path / "no")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert cli.main(["prepare", "coco2014"]) == 2
    assert "--root" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- flickr

TOKENS = "".join(f"{n}.jpg#{k}\tA dog , told {k} .\n" for n in range(4) for k in range(2))


@pytest.fixture
def flickr(tmp_path):
    folder = tmp_path / "have"
    (folder / "Images").mkdir(parents=True)
    for number in range(4):
        (folder / "Images" / f"{number}.jpg").touch()
    return folder


def lists(folder, **numbers):
    for name, members in numbers.items():
        text = "".join(f"{n}.jpg\r\n" for n in members)
        (folder / f"Flickr_8k.{name}Images.txt").write_text(text, "utf-8")


def test_flickr8k_from_token_file_and_lists(flickr, tmp_path):
    # A photo that is no photo (it is so in the real file), and one that is in no list.
    text = TOKENS + "2258277193_586949ec62.jpg.1#0\tA dog .\n"
    (flickr / "Flickr8k.token.txt").write_text(text, "utf-8")
    lists(flickr, train=[0, 1], dev=[2], test=[])
    (version,) = flickr_versions("flickr8k", FileIndex([flickr]))
    assert version.name == "official"
    assert [(e.image, e.split) for e in version.examples] == [
        *(("0.jpg", "train"), ("1.jpg", "train"), ("2.jpg", "val"))
    ]
    index = FileIndex([flickr])
    (written,) = write_versions([version], index, tmp_path, partial=True)
    assert written.images == {"train": 2, "val": 1}
    assert read_captions(written.path)[0].captions == ("A dog , told 0 .", "A dog , told 1 .")


def test_a_photo_in_two_lists_is_an_error(flickr):
    (flickr / "Flickr8k.token.txt").write_text(TOKENS, "utf-8")
    lists(flickr, train=[0, 1], dev=[1], test=[3])
    with pytest.raises(DataError, match=r"1\.jpg is in two lists"):
        flickr_versions("flickr8k", FileIndex([flickr]))


def test_flickr_from_karpathys_file(flickr, tmp_path):
    photos = [(f"{n}.jpg", None, None, split) for n, split in enumerate(("train", "val", "test"))]
    karpathy_json(flickr / "dataset_flickr30k.json", photos)
    (version,) = flickr_versions("flickr30k", FileIndex([flickr]))
    assert [(e.image_id, e.split) for e in version.examples] == [
        *(("0.jpg", "train"), ("1.jpg", "val"), ("2.jpg", "test"))
    ]


def test_flickr30k_from_kaggle_and_the_lists_of_entities(flickr):
    text = 'image_name| comment_number| comment\n0.jpg| 0| A "dog" , running .\n'
    # The original table has a line without its second bar.
    text += "0.jpg| 4   A dog runs across the grass .\n1.jpg| 0| Two men .\n"
    (flickr / "results.csv").write_text(text, "utf-8")
    captions = read_token_file(flickr / "results.csv")
    assert captions == {
        "0.jpg": ['A "dog" , running .', "A dog runs across the grass ."],
        "1.jpg": ["Two men ."],
    }
    for name, number in (("train", 0), ("val", 1), ("test", 2)):
        (flickr / f"{name}.txt").write_text(f"{number}\n", "utf-8")
    (version,) = flickr_versions("flickr30k", FileIndex([flickr]))
    assert version.name == "entities"
    assert [(e.image, e.split) for e in version.examples] == [("0.jpg", "train"), ("1.jpg", "val")]


def test_kaggles_flickr8k_lacks_a_split(flickr):
    (flickr / "captions.txt").write_text('image,caption\n0.jpg,"A dog, running ."\n', "utf-8")
    with pytest.raises(DataError, match=r"no split.*Flickr_8k\.trainImages.*prepare csv"):
        flickr_versions("flickr8k", FileIndex([flickr]))
    lists(flickr, train=[0], dev=[1], test=[2])
    (version,) = flickr_versions("flickr8k", FileIndex([flickr]))
    assert version.examples[0].captions == ("A dog, running .",)


def test_files_are_found_in_any_folder(tmp_path):
    for name in ("a/x.jpg", "b/c/x.jpg", "b/y.jpg", ".hidden/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/loop").symlink_to(tmp_path)
    index = FileIndex([tmp_path, tmp_path / "absent"])
    assert index.find("c/x.jpg") == str(tmp_path / "b/c/x.jpg")
    assert index.find("elsewhere/y.jpg") == str(tmp_path / "b/y.jpg")
    assert index.find("no.jpg", "y.jpg") == str(tmp_path / "b/y.jpg")
    assert index.find("z.jpg") is None
    assert [path[len(str(tmp_path)) :] for path in index.match("?/*.jpg")] == [
        *("/a/x.jpg", "/b/c/x.jpg", "/b/y.jpg")
    ]
