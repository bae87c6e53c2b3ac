import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.image_formats import formats
from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource, SourceImage
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError


def write(path: pathlib.Path, value: int = 0) -> None:
    """An image of 3x4 pixels of this value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 3, 3), value, np.uint8)).save(path, "PNG")


def write_lines(folder: pathlib.Path, *lines: dict) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    for i, file in enumerate(["n02/b.JPEG", "n02/a.png", "n01/c.WebP", "n10/z.tif"]):
        write(tmp_path / "photos" / "train" / file, i)
    opened = open_image_source(str(tmp_path / "photos"))
    assert isinstance(opened, ImageSource)
    assert opened.name == "photos"
    assert list(opened.class_names) == ["n01", "n02", "n10"]
    found = [opened[i] for i in range(len(opened))]
    assert [o.name for o in found] == ["n01/c.WebP", "n02/a.png", "n02/b.JPEG", "n10/z.tif"]
    assert [o.label for o in found] == [0, 1, 1, 2]
    assert [o.image[0, 0, 0] for o in found] == [2, 1, 0, 3]
    assert isinstance(found[0], SourceImage)
    assert (found[0].image.shape, found[0].captions) == ((4, 3, 3), ())


def test_sub_folders_of_a_class_belong_to_it_and_hidden_files_and_others_to_none(tmp_path):
    for file in ["cat/b.png", "cat/old/a.png", "cat/old/er/c.png", "dog/a.png"]:
        write(tmp_path / file)
    for file in [".cache/a.png", "cat/.a.png", "cat/._b.png"]:
        write(tmp_path / file)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "LICENSE").write_text("no folder")
    (tmp_path / "cat" / "no-extension").write_text("no image")
    opened = open_image_source(str(tmp_path))
    assert [opened[i].name for i in range(4)] == [
        "cat/b.png",
        "cat/old/a.png",
        "cat/old/er/c.png",
        "dog/a.png",
    ]
    assert len(opened) == 4
    assert list(opened.class_names) == ["cat", "dog"]


def test_a_flat_folder_has_no_classes(tmp_path):
    for i, name in enumerate("cab"):
        write(tmp_path / f"{name}.png", i)
    opened = open_image_source(str(tmp_path))
    assert (len(opened), tuple(opened.class_names)) == (3, ())
    assert [(opened[i].name, opened[i].label) for i in range(3)] == [
        ("a.png", -1),
        ("b.png", -1),
        ("c.png", -1),
    ]


def test_a_split_is_a_sub_folder_and_train_is_all_where_there_are_none(tmp_path):
    write(tmp_path / "set" / "train" / "a" / "1.png")
    write(tmp_path / "set" / "val" / "a" / "2.png")
    assert open_image_source(str(tmp_path / "set"))[0].name == "a/1.png"
    assert open_image_source(str(tmp_path / "set"), "val")[0].name == "a/2.png"
    assert open_image_source(str(tmp_path / "set" / "val"))[0].name == "a/2.png"
    with pytest.raises(
        UserError, match=r"^split is 'test', but .*set has the folders 'train', 'val', expected"
    ):
        open_image_source(str(tmp_path / "set"), "test")


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    write(tmp_path / "val" / "a" / "2.png")
    write(tmp_path / "test" / "a" / "2.png")
    with pytest.raises(
        UserError, match=r"^split is 'train', but .* has the folders 'test', 'val', expected"
    ):
        open_image_source(str(tmp_path))


def test_a_class_of_a_splits_name_does_not_pass_for_the_data_set(tmp_path):
    for i, name in enumerate(["apple", "bus", "train", "whale"]):
        write(tmp_path / "set" / name / "1.png", i)
    said = (
        rf"^source is '{tmp_path}/set', whose folder 'train' may be a part of the data set or a "
        rf"class beside 'apple', "
        rf"'bus', 'whale', expected '{tmp_path}/set/train' for that part alone, or all classes "
        rf"inside a folder 'train'$"
    )
    with pytest.raises(UserError, match=said):
        open_image_source(str(tmp_path / "set"))
    # Both ways out that the sentence names, and a part asked for by its name.
    assert len(open_image_source(str(tmp_path / "set" / "train"))) == 1
    assert len(open_image_source(str(tmp_path / "set"), "whale")) == 1
    (tmp_path / "set").rename(tmp_path / "train")
    assert list(open_image_source(str(tmp_path)).class_names) == ["apple", "bus", "train", "whale"]


def test_folders_without_images_beside_a_part_leave_it_one(tmp_path):
    write(tmp_path / "train" / "a" / "1.png")
    write(tmp_path / "Validation" / "a" / "2.png")
    (tmp_path / "devkit" / "data").mkdir(parents=True)
    (tmp_path / "devkit" / "data" / "classes.txt").write_text("a")
    assert [open_image_source(str(tmp_path))[0].name] == ["a/1.png"]


def test_links_are_followed(tmp_path):
    write(tmp_path / "store" / "x.png", 7)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "a.png").symlink_to(tmp_path / "store" / "x.png")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "store")
    opened = open_image_source(str(tmp_path / "set"))
    assert [opened[i].image[0, 0, 0] for i in range(2)] == [7, 7]
    (tmp_path / "set" / "cat" / "round").symlink_to(tmp_path / "set" / "cat")
    with pytest.raises(UserError, match="can't be read"):
        open_image_source(str(tmp_path / "set"))


def test_it_travels_to_other_processes(tmp_path):
    write(tmp_path / "cat" / "a.png", 9)
    opened = pickle.loads(pickle.dumps(open_image_source(str(tmp_path))))
    assert opened[0].image[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"has no images, expected files like a\.jpg"),
        (["cat/", "dog/"], r"has no images"),
        (["cat/a.png", "dog/", "fox/"], r"has 2 classes without images \(first: 'dog'\)"),
        (["a.png", "cat/b.png"], r"has images \('a.png'\) beside sub-folders of images \('cat'\)"),
    ],
)
def test_folders_that_are_not_a_data_set_are_refused(tmp_path, files, message):
    for file in files:
        if file.endswith("/"):
            (tmp_path / file).mkdir()
        else:
            write(tmp_path / file)
    with pytest.raises(UserError, match=message):
        open_image_source(str(tmp_path))


def test_a_source_that_is_not_a_folder_is_refused(tmp_path):
    write(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"nowhere', which doesn't exist, expected 'tfds:<name>', 'hf:<name>', "
    ):
        open_image_source(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"a\.png', which is a file"):
        open_image_source(str(tmp_path / "a.png"))
    with pytest.raises(UserError, match=r"^data_dir is '/tfds', expected none for '/"):
        open_image_source(str(tmp_path), data_dir="/tfds")


def test_a_damaged_image_is_named_with_its_fault_and_the_others_are_fine(tmp_path):
    write(tmp_path / "cat" / "a.png", 1)
    write(tmp_path / "cat" / "b.png", 2)
    path = tmp_path / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    opened = open_image_source(str(tmp_path))
    with pytest.raises(CorruptImage, match=rf"^{path} can't be decoded \("):
        opened[0]
    assert opened[1].image[0, 0, 0] == 2


def test_a_file_that_cannot_be_read_is_not_a_corrupt_image(tmp_path):
    # A disk that fails must stop a job which only leaves out bad images.
    write(tmp_path / "a.png")
    opened = open_image_source(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        UserError, match=r"a\.png can't be read \(No such file or directory\)"
    ) as caught:
        opened[0]
    assert not isinstance(caught.value, CorruptImage)


def test_a_flat_folders_metadata_gives_labels_and_captions(tmp_path):
    for i, name in enumerate("abc"):
        write(tmp_path / f"{name}.png", i)
    write_lines(
        tmp_path,
        {"file_name": "c.png", "label": "dog", "text": ["one", "two\u2028lines"], "id": 3},
        {"file_name": "./a.png", "label": "cat", "text": "über"},
        {"file_name": "b.png", "label": "dog", "caption": "b"},
    )
    opened = open_image_source(str(tmp_path))
    assert list(opened.class_names) == ["cat", "dog"]
    found = [opened[i] for i in range(3)]
    assert [(o.name, o.label, o.captions) for o in found] == [
        ("a.png", 0, ("über",)),
        ("b.png", 1, ("b",)),
        ("c.png", 1, ("one", "two\u2028lines")),
    ]


def test_numbers_as_labels_are_classes_called_by_their_numbers(tmp_path):
    write(tmp_path / "sub" / "a.png")
    write(tmp_path / "b.png")
    write_lines(
        tmp_path, {"file_name": "b.png", "label": 3}, {"file_name": "sub/a.png", "label": 0}
    )
    opened = open_image_source(str(tmp_path))
    assert [(opened[i].name, opened[i].label) for i in range(2)] == [
        ("b.png", 3),
        ("sub/a.png", 0),
    ]
    assert list(opened.class_names) == ["0", "1", "2", "3"]


def test_captions_need_no_labels(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "a"}\r\n\r\n'
    )
    opened = open_image_source(str(tmp_path))
    assert (opened[0].label, opened[0].captions, tuple(opened.class_names)) == (
        -1,
        ("a",),
        (),
    )


A, B = '{"file_name": "a.png", "label": 0}', '{"file_name": "b.png", "label": 1}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [A],
            r"metadata\.jsonl has no line for 1 images \(first: 'b\.png'\), expected one for each$",
        ),
        (
            [A, B, '{"file_name": "c.png"}'],
            r"line 3 names 'c\.png', expected an image in that folder",
        ),
        ([A, B, A], r"line 3 names 'a\.png' as line 1 does"),
        ([A, '{"file_name": "../b.png"}'], r"line 2 names '\.\./b\.png'"),
        ([A, "{file_name: b.png}"], r"line 2 is not JSON \("),
        ([A, "[" * 100_000], r"line 2 is not JSON"),
        ([A, '["b.png", 1]'], r'line 2 is \["b\.png", 1\], expected an object with a "file_name"$'),
        ([A, '{"label": 1}'], r'line 2 is \{"label": 1\}, expected an object with a "file_name"$'),
        (
            [A, '{"file_name": "b.png", "label": -1}'],
            r'line 2: "label" is -1, expected the name of a class or its num',
        ),
        ([A, '{"file_name": "b.png", "label": 1.5}'], r'line 2: "label" is 1\.5'),
        ([A, '{"file_name": "b.png", "label": true}'], r'line 2: "label" is true'),
        ([A, '{"file_name": "b.png", "label": 1700000000}'], r'line 2: "label" is 1700000000'),
        (
            [A, '{"file_name": "b.png"}'],
            r"line 2: the label is missing, expected what most lines have: a number$",
        ),
        (
            [A, '{"file_name": "b.png", "label": "cat"}'],
            r"line 2: the label is a name, expected what most lines have",
        ),
        (
            [A, '{"file_name": "b.png", "label": 1, "text": "b"}'],
            r"line 2: the caption is given, .*: missing$",
        ),
        (
            [A, '{"file_name": "b.png", "text": "b", "caption": "b"}'],
            r'line 2 has a "text" and a "caption"',
        ),
        (
            [A, '{"file_name": "b.png", "text": 5}'],
            r'line 2: "text" is 5, expected a string or a list of strings$',
        ),
        (
            [A, '{"file_name": "b.png", "caption": ["b", null]}'],
            r'line 2: "caption" is \["b", null\]',
        ),
        (
            [A, r'{"file_name": "b.png", "caption": "\ud800"}'],
            r'line 2: "caption" has the half character \\ud800',
        ),
    ],
)
def test_bad_metadata_is_named_with_its_line(tmp_path, lines, message):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        open_image_source(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            '{"file_name": "a.png", "text": "café"}\n'.encode("latin1"),
            r"line 1 has the byte 0xe9 at column 36",
        ),
        (A.encode("utf-16"), r"line 1 has the byte 0xff at column 1, expected UTF-8$"),
    ],
)
def test_metadata_in_another_encoding_is_refused(tmp_path, data, message):
    write(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_image_source(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_folder_without_permission_is_named(tmp_path):
    write(tmp_path / "cat" / "a.png")
    (tmp_path / "cat").chmod(0)
    with pytest.raises(UserError, match=r"cat can't be read \(Permission denied\)"):
        open_image_source(str(tmp_path))


def test_what_is_passed_over_is_counted_and_named_in_one_line(tmp_path, caplog):
    write(tmp_path / "a.png")
    for name in ("b.mp4", "c.mp4", ".DS_Store", "README"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    with caplog.at_level("INFO", "uvit_jax"):
        assert len(open_image_source(str(tmp_path))) == 1
    (said,) = caplog.messages
    assert said.startswith(f"passed over in {tmp_path}: 2 .mp4 (first: ")
    for part in (
        "1 hidden (first: .DS_Store)",
        "1 without an extension (first: README)",
        "(first: empty)",
    ):
        assert part in said


def test_a_folder_of_nothing_else_is_not_remarked_upon(tmp_path, caplog):
    write(tmp_path / "a.png")
    with caplog.at_level("INFO", "uvit_jax"):
        open_image_source(str(tmp_path))
    assert caplog.messages == []


def test_every_extension_of_a_format_that_is_read_is_an_image(tmp_path):
    names = ["a.jfif", "b.JPE", "c.tiff", "d.ppm", "e.jp2"]
    for name in names:
        write(tmp_path / name)
    assert [open_image_source(str(tmp_path))[i].name for i in range(len(names))] == names


@pytest.mark.skipif("HEIF" in formats(), reason="pillow-heif is installed")
def test_files_of_a_plugin_that_is_missing_are_named_with_it(tmp_path, caplog):
    (tmp_path / "a.HEIC").touch()
    said = (
        r"has no images, .*; there are 1 \.heic \(first: a\.HEIC; pip install pillow-heif "
        r"reads them\)$"
    )
    with pytest.raises(UserError, match=said):
        open_image_source(str(tmp_path))
    write(tmp_path / "b.png")
    with caplog.at_level("INFO", "uvit_jax"):
        assert len(open_image_source(str(tmp_path))) == 1
    assert "1 .heic (first: a.HEIC; pip install pillow-heif reads them)" in caplog.text


def test_names_that_are_not_utf8_are_read_and_shown_as_text(tmp_path):
    for i, name in enumerate((b"caf\xe9", "café".encode(), b"a\nb")):
        write(tmp_path / os.fsdecode(name) / os.fsdecode(b"%d\xff.png" % i), i)
    opened = open_image_source(str(tmp_path))
    assert list(opened.class_names) == [r"a\nb", "café", r"caf\xe9"]
    assert [opened[i].name for i in range(3)] == [
        r"a\nb/2\xff.png",
        r"café/1\xff.png",
        r"caf\xe9/0\xff.png",
    ]
    (tmp_path / os.fsdecode(b"caf\xe9/0\xff.png")).write_bytes(b"no image")
    with pytest.raises(CorruptImage, match=r"caf\\xe9/0\\xff\.png starts with the bytes") as caught:
        opened[2]
    str(caught.value).encode()


def test_folders_named_by_numbers_are_in_the_order_of_text_and_said_to_be(tmp_path, caplog):
    for name in ("1", "2", "10"):
        write(tmp_path / name / "a.png")
    with caplog.at_level("INFO", "uvit_jax"):
        assert list(open_image_source(str(tmp_path)).class_names) == ["1", "10", "2"]
    assert caplog.messages == [
        "classes are in the order of their folders' names as text: 1, 10, 2, ..."
    ]


def test_parts_inside_the_only_folder_are_not_a_class(tmp_path):
    write(tmp_path / "set" / "data" / "train" / "a.png")
    write(tmp_path / "set" / "data" / "test" / "a.png")
    said = r"set', whose only folder holds 'train', a part of a data set: expected '.*set/data'$"
    with pytest.raises(UserError, match=said):
        open_image_source(str(tmp_path / "set"))
