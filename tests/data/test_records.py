"""The reader of lists, results and captions files: every form, every encoding, every command."""

import codecs
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.batch.sources import open_sources
from captioner.data.annotations import ImageFinder, read_captions
from captioner.data.fields import _is_missing, coco_image_id, id_key, read_entry
from captioner.data.records import read_rows, read_text
from captioner.errors import DataError
from captioner.evaluation.results import match_results, read_results
from captioner.prepare.custom import read_table

CAPTIONS = {"a.jpg": "A dog, asleep.", "b.jpg": "A cat."}
TEXTS = dict(enumerate(CAPTIONS.values()))
OBJECTS = [{"image": name, "caption": text} for name, text in CAPTIONS.items()]
HUGGING_FACE = [{"file_name": name, "text": text} for name, text in CAPTIONS.items()]
BLIP = [{"caption": [text], "image": name, "image_id": name[0]} for name, text in CAPTIONS.items()]
COCO = {
    "info": {},
    "categories": [],
    "images": [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)],
    "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(CAPTIONS.values())],
}
KARPATHY = {
    "images": [
        {"filename": name, "imgid": i, "split": "train", "sentences": [{"raw": text}]}
        for i, (name, text) in enumerate(CAPTIONS.items())
    ]
}


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


FORMS = {
    "lines.jsonl": lines(OBJECTS),
    "lines.json": lines(OBJECTS),
    "lines.txt": lines(OBJECTS),
    "list.json": json.dumps(OBJECTS, indent=1),
    "list.jsonl": json.dumps(OBJECTS),
    "metadata.jsonl": lines(HUGGING_FACE),
    "blip.json": json.dumps(BLIP),
    "coco.json": json.dumps(COCO),
    "karpathy.json": json.dumps(KARPATHY),
    "mapping.json": json.dumps(CAPTIONS),
    "commas.csv": 'image,caption\na.jpg,"A dog, asleep."\nb.jpg,A cat.\n',
    "unquoted.csv": "image,caption\na.jpg,A dog, asleep.\nb.jpg,A cat.\n",
    "semicolons.csv": "File Name;Caption\na.jpg;A dog, asleep.\nb.jpg;A cat.\n",
    "excel.csv": "sep=;\r\nimage;caption\r\na.jpg;A dog, asleep.\r\nb.jpg;A cat.\r\n",
    "tabs.tsv": "image_id\tcaption\na.jpg\tA dog, asleep.\nb.jpg\tA cat.\n",
    "quoted.csv": '"image","caption"\n"a.jpg","A dog, asleep."\n"b.jpg","A cat."\n',
    "quoted.txt": '"image"\t"caption"\n"a.jpg"\t"A dog, asleep."\n"b.jpg"\t"A cat."\n',
    "headless.csv": '"a.jpg","A dog, asleep."\n"b.jpg","A cat."\n',
    "results.csv": "image_name| comment_number| comment\n"
    "a.jpg| 0| A dog, asleep.\nb.jpg| 4   A cat.\n",  # a row of Kaggle's has lost a bar
    "captions.txt": "image,caption\na.jpg,A dog, asleep.\nb.jpg,A cat.\n",
    "tokens.token": "a.jpg#0\tA dog, asleep.\nb.jpg#0\tA cat.\n",
    "ours.txt": "a.jpg\tA dog, asleep.\nb.jpg\tA cat.\n",
    "ours.csv": 'image,id,caption,score,error,caption_2\na.jpg,,"A dog, asleep.",-1,,\n'
    "b.jpg,,A cat.,-1,,\n",
    "spaced.csv": 'image, caption\na.jpg, "A dog, asleep."\nb.jpg, A cat.\n',
    "pairs.json": json.dumps([list(pair) for pair in CAPTIONS.items()]),
    "appended.jsonl": "\ufeff".join(map(json.dumps, [*OBJECTS])).replace("}\ufeff", "}\n\ufeff"),
    "lists.jsonl": "".join(json.dumps([entry]) + "\n" for entry in OBJECTS),
    "columns.json": json.dumps({"image": dict(enumerate(CAPTIONS)), "caption": TEXTS}),
    "series.json": json.dumps({"image": list(CAPTIONS), "caption": list(TEXTS.values())}),
    "split.json": json.dumps(
        {"columns": ["image", "caption"], "index": [0, 1], "data": list(CAPTIONS.items())}
    ),
    "table.json": json.dumps({"schema": {"fields": []}, "data": OBJECTS}),
    "annotations.json": json.dumps({"annotations": OBJECTS}),
    "pandas.csv": "image,captions\na.jpg,\"['A dog, asleep.']\"\nb.jpg,['A cat.']\n",
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.fixture
def write(tmp_path):
    """Write text into a file beside two images in `Images/`."""
    (tmp_path / "Images").mkdir()
    for name in CAPTIONS:
        (tmp_path / "Images" / name).write_bytes(b"x")

    def write(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_reads_every_form(write, name, encoding):
    path = write(name, FORMS[name], encoding)
    images = [str(path.parent / "Images" / image) for image in CAPTIONS]
    examples = read_captions(path)
    assert [(item.image, item.captions) for item in examples] == [
        (image, (text,)) for image, text in zip(images, CAPTIONS.values(), strict=True)
    ]
    rows = read_table(path)
    assert {row.image: row.captions for row in rows} == {k: (v,) for k, v in CAPTIONS.items()}
    items = list(open_sources([str(path)]))
    assert [(item.source, item.error) for item in items] == [(image, None) for image in images]
    assert match_results(read_results(path), examples).captions == list(CAPTIONS.values())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(write, end):
    path = write("a.csv", FORMS["commas.csv"].replace("\n", end))
    assert [row.captions for row in read_rows(path)] == [(text,) for text in CAPTIONS.values()]


def test_bytes_that_are_not_utf_8_are_windows_1252_in_captions(write, caplog):
    path = write("a.csv", "image,caption\ncafé.jpg,un café\nb.jpg,“né”\n", "cp1252")
    accented = path.parent / "Images" / "café.jpg"
    accented.write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        examples = read_captions(path)
    assert [item.captions for item in examples] == [("un café",), ("“né”",)]
    assert examples[0].image == str(accented)
    assert caplog.text.count("a.csv:2: not UTF-8, read as Windows-1252") == 1
    assert "save the file as UTF-8" in caplog.text
    assert read_text(path).splitlines()[1] == "café.jpg,un café"


def test_names_with_backslashes_are_found(write):
    path = write("a.csv", "image,caption\nphotos\\dogs\\a.jpg,A dog\n.\\b.jpg,A cat\n")
    (path.parent / "photos" / "dogs").mkdir(parents=True)
    (path.parent / "photos" / "dogs" / "a.jpg").write_bytes(b"x")
    found = [Path(item.image) for item in read_captions(path)]
    assert found[0] == path.parent / "photos" / "dogs" / "a.jpg"
    assert found[1].samefile(path.parent / "Images" / "b.jpg")
    assert [Path(item.source) for item in open_sources([str(path)])] == found


def test_coco_images_without_their_folder_are_found(tmp_path):
    (tmp_path / "val2014").mkdir()
    image = tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    image.write_bytes(b"x")
    finder = ImageFinder(tmp_path / "k.json")
    assert finder.find(image.name, by_last_part=True) == str(image)


def test_cells_may_be_long(write):
    text = "word " * 60_000
    path = write("a.csv", f"image,caption\na.jpg,{text}\n")
    (row,) = read_rows(path)
    assert row.captions == (text.strip(),)


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "null", "<NA>", "N/A", "#N/A", "NA"])
def test_missing_captions_are_counted_and_not_trained_on(write, missing, caplog):
    path = write("a.csv", f"image,caption\na.jpg,{missing}\na.jpg,A dog\nb.jpg,{missing}\n")
    with caplog.at_level(logging.WARNING):
        (example,) = read_captions(path)
    assert example.captions == ("A dog",)
    assert "2 missing caption(s)" in caplog.text
    assert [row.missing for row in read_rows(path)] == [1, 0, 1]
    (row,) = read_rows(write("b.jsonl", '{"image": "a.jpg", "caption": null}\n'))
    assert (row.captions, row.missing) == ((), 1)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(texts, min_size=1, max_size=4))
def test_lists_in_cells_as_json_python_and_numpy_write_them(captions):
    expected = [caption for caption in captions if not _is_missing(caption)]
    printed = np.array(captions, dtype=object)
    for cell in (json.dumps(captions), str(captions), np.array2string(printed, threshold=9)):
        row = read_entry({"image": "a.jpg", "captions": cell}, "here")
        assert list(row.captions) == expected


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("('a dog', 'b')", ["a dog", "b"]),
        ("{'a dog', \"it's\"}", ["a dog", "it's"]),
        ("array(['a dog', 'b'], dtype=object)", ["a dog", "b"]),
        ("np.array(['a dog'])", ["a dog"]),
        ("[b'a dog']", ["a dog"]),
        ("b'a dog'", ["a dog"]),
        ("[{'raw': 'A dog.', 'tokens': ['a', 'dog'], 'imgid': 0}]", ["A dog."]),
        ('{"raw": "A dog."}', ["A dog."]),
        ("[<NA>, 'a dog']", ["a dog"]),
    ],
)
def test_other_collections_in_cells(cell, captions):
    assert list(read_entry({"image": "a.jpg", "caption": cell}, "here").captions) == captions


@pytest.mark.parametrize("cell", ["['a' 'b' ... 'z']", "['a', ...]", "['a dog', 'a b", "['a', 1]"])
def test_a_list_of_which_a_part_is_missing_is_no_caption(cell):
    row = read_entry({"image": "a.jpg", "caption": cell}, "here")
    assert row.error
    assert not row.captions


def test_columns_of_the_same_name_are_all_read(write):
    for names in ("caption,caption", "caption,caption.1", "text,text_2"):
        (row,) = read_rows(write("a.csv", f"image,{names}\na.jpg,A dog,A cat\n"))
        assert row.captions == ("A dog", "A cat")


def test_half_a_character_in_json_is_replaced(write):
    (row,) = read_rows(write("a.jsonl", r'{"image": "a.jpg", "caption": "a \ud83d"}' + "\n"))
    assert row.captions == ("a \ufffd",)


@pytest.mark.parametrize(
    "cell", ["[unknown] dog", "[__import__('os').getcwd()]", "[1, 2]", "[f'{1}']", "[" * 5000 + "]"]
)
def test_other_brackets_are_text_and_nothing_is_evaluated(cell):
    assert read_entry({"image": "a.jpg", "caption": cell}, "here").captions == (cell,)


def test_ids_of_captions_do_not_matter(write):
    for ids in ([0, 0], [None, None], ["x", {}]):
        content = json.loads(json.dumps(COCO))
        for entry, value in zip(content["annotations"], ids, strict=True):
            entry["id"] = value
            entry["image_id"] = str(entry["image_id"])
        examples = read_captions(write("c.json", json.dumps(content)))
        assert [item.captions for item in examples] == [(text,) for text in CAPTIONS.values()]


@pytest.mark.parametrize(
    "write_id",
    [
        float,
        lambda i: f"{i:012d}",
        lambda i: f"{i}.0",
        lambda i: f"COCO_val2014_{i:012d}",
        lambda i: f"COCO_val2014_{i:012d}.jpg",
        lambda i: f"val2014/COCO_val2014_{i:012d}.jpg",
    ],
)
@pytest.mark.parametrize("as_dict", [False, True])
def test_results_whose_ids_are_written_differently(write, write_id, as_dict):
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (42, 73)]
    annotations = [{"image_id": i, "caption": f"man {i}"} for i in (42, 73)]
    references = write("r.json", json.dumps({"images": images, "annotations": annotations}))
    rows = [{"image_id": write_id(i), "caption": f"man {i}"} for i in (73, 42)]
    content = {"annotations": rows} if as_dict else rows
    results = read_results(write("results.json", json.dumps(content)))
    matching = match_results(results, read_captions(references, missing="ignore"))
    assert matching.captions == ["man 42", "man 73"]


def test_ids_are_compared_by_value():
    assert id_key(42.0) == id_key("000042") == id_key("42.0") == id_key(42) == "42"
    assert id_key("a42") == "a42"
    assert id_key(0) == "0"


def test_only_cocos_own_names_have_ids():
    assert coco_image_id("val2014/COCO_val2014_000000000042.jpg") == 42
    assert coco_image_id("C:\\coco\\000000581929.png") == 581929
    for name in ("dog_1.jpg", "IMG_0002.jpg", "99_ab12.jpg", "42.jpg", "x_000000000042.jpg"):
        assert coco_image_id(name) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\3\4" + bytes(60), "zip archive"),
        (b"\x1f\x8b" + bytes(60), "compressed"),
        (b"x" * 257 + b"ustar" + bytes(300), "tar archive"),
        (b"PAR1" + bytes(60), "Parquet"),
        (b"\xff\xd8\xff" + bytes(60), "an image, not a list"),
        (b"abc\0def", "not a text file"),
    ],
)
def test_other_kinds_of_files_are_named(write, content, message):
    path = write("a.csv", content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))
    (item,) = open_sources([str(path)])
    assert message in item.error


def test_folders_and_web_addresses_are_named(tmp_path):
    (tmp_path / "0.tar").touch()
    with pytest.raises(DataError, match="folder of tar archives"):
        list(read_rows(tmp_path))
    with pytest.raises(DataError, match="a web address: download"):
        list(read_rows("https://example.org/captions.json"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(DataError, match="a pipe or a device: save its content in a file"):
        next(read_rows(tmp_path / "list.txt"))


def test_bad_entries_do_not_stop_a_list(write):
    rows = list(read_rows(write("a.jsonl", '"a.jpg"\n{"image"\n{"x": 1}\n[[[\n"b.jpg"\n')))
    assert [row.image for row in rows] == ["a.jpg", None, None, None, "b.jpg"]
    assert [row.place.rpartition(":")[2] for row in rows] == list("12345")
    assert all(row.error for row in rows[1:4])


def test_byte_order_marks_are_told_apart(write):
    assert codecs.BOM_UTF32_LE.startswith(codecs.BOM_UTF16_LE)
    path = write("a.txt", codecs.BOM_UTF32_LE + "a.jpg\nb.jpg\n".encode("utf-32-le"))
    assert [row.image for row in read_rows(path)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Ein Hütchen", "红色的圆形" * 40])
def test_wide_characters_without_a_mark(write, encoding, text):
    rows = list(read_rows(write("captions.csv", f"image,caption\na.jpg,{text}\n", encoding)))
    assert [(row.image, row.captions) for row in rows] == [("a.jpg", (text,))]


@pytest.mark.parametrize("end", ["", 'd.jpg,He said "no"\n'])
def test_a_quotation_mark_that_is_not_closed_swallows_no_rows_unnoticed(write, end):
    text = 'image,caption\na.jpg,"Two\nlines"\nb.jpg,"A cat\nc.jpg,A cup\n'
    ids = write("ids.csv", 'id,caption\n1,"A cat\n2,A cup\n')
    last = write("last.csv", 'caption,image\n"A cat,b.jpg\nA cup,c.jpg\n')
    assert all("quotation" in row.error for path in (ids, last) for row in read_rows(path))
    first, *others = read_rows(write("captions.csv", text + end))
    assert first.captions == ("Two\nlines",)
    assert "quotation mark is not closed" in others[0].error


def test_names_in_quotes_in_a_list(write):
    lines = ['"a" dog.jpg', "b.jpg"]
    assert [row.image for row in read_rows(write("list.txt", "\n".join(lines)))] == lines


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ("a.jpg,A dog, asleep.", ("A dog, asleep.",)),
        ("a.jpg,A dog.,A brown dog.", ("A dog.", "A brown dog.")),
        ("a.jpg, A dog., A brown dog.", ("A dog.", "A brown dog.")),
        ("a.jpg|A dog. | A brown dog.", ("A dog.", "A brown dog.")),
    ],
)
def test_captions_in_a_table_without_a_header(write, row, captions):
    (found,) = read_rows(write("captions.csv", row + "\n"))
    assert (found.image, found.captions) == ("a.jpg", captions)
