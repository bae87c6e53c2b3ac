"""Labels and captions as people's folders have them: tables, and text beside images."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.image_sources.image_source import ImageSource
from uvit_jax.data.image_sources.metadata_files import read_rows
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError


def write(folder: pathlib.Path, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((4, 3, 3), i, np.uint8)).save(folder / f"{i}.png")


def labels(opened: ImageSource) -> list[int]:
    return [opened.label(i) for i in range(len(opened))]


def captions(opened: ImageSource) -> list[tuple[str, ...]]:
    return [opened[i].captions for i in range(len(opened))]


def table(folder: pathlib.Path, *lines: str) -> ImageSource:
    """Three images and a metadata.csv of these lines."""
    write(folder)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return open_image_source(str(folder))


def test_a_csv_gives_labels_and_captions(tmp_path):
    found = table(
        tmp_path,
        "\ufefffile_name,label,text",
        '2.png,2,"a cat, and ""one""\nmore"',
        "0.png,0,b",
        "1.png,1,c",
    )
    assert (labels(found), list(found.class_names)) == ([0, 1, 2], ["0", "1", "2"])
    assert captions(found) == [("b",), ("c",), ('a cat, and "one"\nmore',)]


def test_a_parquet_file_gives_labels_and_captions(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path)
    columns = {
        "file_name": ["2.png", "0.png", "1.png"],
        "label": ["b", "a", "b"],
        "text": [["x", "y"], ["z"], ["w"]],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    found = open_image_source(str(tmp_path))
    assert (labels(found), captions(found)) == ([0, 1, 1], [("z",), ("w",), ("x", "y")])
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        UserError, match=r"metadata\.parquet can't be read \(.*\), expected a Parquet file$"
    ):
        open_image_source(str(tmp_path))


def test_metadata_beside_the_parts_is_of_the_part_that_is_read_and_numbers_classes_alike_in_all(
    tmp_path,
):
    write(tmp_path / "train", 2)
    write(tmp_path / "val", 1)
    rows = [("train/0.png", "cat"), ("train/1.png", "dog"), ("val/0.png", "dog")]
    lines = (json.dumps({"file_name": file, "label": label}) for file, label in rows)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for split, expected in (("train", [0, 1]), ("val", [1])):
        found = open_image_source(str(tmp_path), split)
        assert (labels(found), list(found.class_names)) == (expected, ["cat", "dog"])
    write(tmp_path / "train", 3)
    with pytest.raises(
        UserError, match=r"metadata\.jsonl has no line for 1 images \(first: 'train/2\.png'\)"
    ):
        open_image_source(str(tmp_path))


def test_a_parts_own_metadata_goes_before_that_beside_it(tmp_path):
    table(tmp_path / "train", "file_name,label", "0.png,1", "1.png,0", "2.png,1")
    (tmp_path / "metadata.csv").write_text(
        "file_name,label\ntrain/0.png,0\ntrain/1.png,0\ntrain/2.png,0\n"
    )
    assert labels(open_image_source(str(tmp_path))) == [1, 0, 1]


def test_metadata_in_a_folder_below_is_of_that_folders_images(tmp_path):
    table(tmp_path / "images", "file_name,label", "0.png,b", "1.png,a", "2.png,b")
    found = open_image_source(str(tmp_path))
    assert ([found[i].name for i in range(3)], labels(found)) == (
        ["images/0.png", "images/1.png", "images/2.png"],
        [1, 0, 1],
    )


@pytest.mark.parametrize("column", ["image_file_name", "file_name"])
def test_the_column_of_files_may_end_in_file_name(tmp_path, column):
    found = table(tmp_path, f"id,{column},captions", "7,0.png,a", "8,1.png,b", "9,2.png,c")
    assert captions(found) == [("a",), ("b",), ("c",)]


def test_columns_that_are_passed_over_are_named(tmp_path, caplog):
    with caplog.at_level("INFO", "uvit_jax"):
        table(tmp_path, "file_name,source,id", "0.png,a,1", "1.png,b,2", "2.png,c,3")
    assert f"passed over in {tmp_path}/metadata.csv: the columns 'id', 'source'" in caplog.messages


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("0", "2", "1"), [0, 2, 1]),
        (("0.0", "1.0", "1.0"), [0, 1, 1]),
        (("01", "00", "02"), [1, 0, 2]),
        (("10", "9", "9"), [10, 9, 9]),
        (("cat", "3", "dog"), [1, 0, 2]),
        (("true", "false", "true"), [1, 0, 1]),
        (("-1", "-1", "-1"), [-1, -1, -1]),
        (("", "", ""), [-1, -1, -1]),
    ],
)
def test_text_that_is_all_whole_numbers_is_numbers_and_else_names(tmp_path, cells, expected):
    found = table(tmp_path, "file_name,label", *(f"{i}.png,{cell}" for i, cell in enumerate(cells)))
    assert labels(found) == expected
    assert bool(found.class_names) == (expected[0] >= 0)


@pytest.mark.parametrize(("label", "expected"), [(1.0, 1), ("3", 3), (-1, -1), (None, -1)])
def test_json_labels_of_other_types_are_what_they_mean(tmp_path, label, expected):
    write(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "label": label}))
    assert labels(open_image_source(str(tmp_path))) == [expected]


def test_labels_that_are_all_unknown_are_none_and_said_to_be(tmp_path, caplog):
    with caplog.at_level("INFO", "uvit_jax"):
        table(tmp_path, "file_name,label", "0.png,-1", "1.png,-1", "2.png,-1")
    (said,) = caplog.messages
    assert "metadata.csv has the label -1 in every line, which is not a class" in said


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            (1, 2, 3),
            "has labels 1 to 3 and so 1 class without images (0), which the model has rows for",
        ),
        ((0, 2, 9), "has labels 0 to 9 and so 7 classes without images (1, 3, 4, 5, 6, ...)"),
    ],
)
def test_classes_without_images_are_warned_of(tmp_path, caplog, numbers, said):
    with caplog.at_level("WARNING", "uvit_jax"):
        found = table(
            tmp_path, "file_name,label", *(f"{i}.png,{number}" for i, number in enumerate(numbers))
        )
    assert labels(found) == list(numbers)
    assert said in " ".join(caplog.messages)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("file_name,label", "0.png,0", "1.png,-1", "2.png,1"),
            r'line 3: "label" is -1, expected the name of a class',
        ),
        (
            ("file_name,label", "0.png,a", "1.png,-1", "2.png,b"),
            r'line 3: "label" is -1, expected the name of a class',
        ),
        (
            ("file_name,label", "0.png,0", "1.png,1.5", "2.png,1"),
            r'line 3: "label" is 1\.5, expected the name',
        ),
        (
            ("file_name,label", "0.png,0", "1.png,", "2.png,1"),
            r"line 3: the label is missing, expected what most",
        ),
        (
            ("file_name,label,labels", "0.png,0,0"),
            r'line 2 has a "label" and a "labels", expected one of them$',
        ),
        (
            ("a_file_name,b_file_name", "0.png,x"),
            r"has the columns a_file_name and b_file_name, expected one of them",
        ),
        (
            ("image;label", "0.png;1"),
            r"metadata\.csv has the columns image;label, expected one called file_name$",
        ),
        (
            ("file_name,text", "0.png,a, b"),
            r"line 2 has 3 cells, expected 2, one for each of file_name, text \(a cell",
        ),
        (("file_name,file_name", "0.png,a"), r"line 1 names a column twice"),
        (("file_name,text", '0.png,"a'), r"line 2 is not CSV \("),
        (("file_name,text", ",a"), r'line 2 is .*, expected an object with a "file_name"$'),
        (
            ("file_name,label", "0.png,1", "1.png,1", "2.png,1", "0.png,1"),
            r"line 5 names '0\.png' as line 2 does",
        ),
        (
            ("file_name,label", "0.png,1", "7.png,1"),
            r"line 3 names '7\.png', expected an image in that folder$",
        ),
        (
            ("file_name,label", "0.png,1"),
            r"has no line for 2 images \(first: '1\.png'\), expected one for each$",
        ),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, *lines)


def test_two_metadata_files_in_one_folder_are_refused(tmp_path):
    write(tmp_path)
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        UserError, match=r"metadata\.csv is beside a metadata\.jsonl, expected one of them$"
    ):
        open_image_source(str(tmp_path))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_bytes("file_name,text\n0.png,café\n".encode("latin1"))
    with pytest.raises(UserError, match=r"line 2 has the byte 0xe9 at column 10, expected UTF-8$"):
        read_rows(path)


def test_text_beside_images_is_their_captions_where_captions_are_wanted(tmp_path, caplog):
    for name in ("cat", "dog"):
        write(tmp_path / name, 1)
        (tmp_path / name / "0.txt").write_text(f"a {name}\n\nanother {name}\n")
    with caplog.at_level("INFO", "uvit_jax"):
        found = open_image_source(str(tmp_path), texts=True)
    assert captions(found) == [("a cat", "another cat"), ("a dog", "another dog")]
    assert (labels(found), caplog.messages) == ([0, 1], [])
    with caplog.at_level("INFO", "uvit_jax"):
        assert captions(open_image_source(str(tmp_path))) == [(), ()]
    assert f"passed over in {tmp_path}: 2 .txt (first: cat/0.txt)" in caplog.messages
    assert (
        "a .txt beside each image is read as its caption where text_encoder.name is set"
        in caplog.messages
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"0.txt": b"a"},
            r"has a \.txt beside 1 of its 2 images, but none beside 1\.png, expected a caption "
            r"for each",
        ),
        ({"0.txt": b"a", "1.txt": b" \n"}, r"1\.txt is empty, expected a caption a line$"),
        (
            {"0.txt": b"a", "1.txt": b"caf\xe9"},
            r"1\.txt has the byte 0xe9 at offset 3, expected UTF-8$",
        ),
    ],
)
def test_captions_that_some_images_lack_are_refused(tmp_path, files, message):
    write(tmp_path, 2)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_image_source(str(tmp_path), texts=True)
