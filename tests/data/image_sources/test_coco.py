import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED
from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError

IMAGES = [
    {"id": 9, "file_name": "b.jpg"},
    {"id": 2, "file_name": "c.png"},
    {"id": 30, "file_name": "sub/a.png"},
]
CAPTIONS = [
    {"id": 7, "image_id": 30, "caption": "Žába \N{FROG FACE}\n"},
    {"id": 5, "image_id": 9, "caption": "nine, first"},
    {"id": 6, "image_id": 2, "caption": ""},
    {"id": 4, "image_id": 9, "caption": "nine, second"},
]


def write(source, split="train2017", images=IMAGES, annotations=CAPTIONS, **more):
    """Annotations, and images of 3x4 pixels, each full of its id."""
    (source / "annotations").mkdir(parents=True, exist_ok=True)
    path = source / "annotations" / f"captions_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations} | more))
    for image in IMAGES:
        file = source / split / image["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 3, 3), image["id"], np.uint8)).save(file, "PNG")
    return path


def test_images_come_by_their_ids_with_all_captions_in_the_order_of_the_file(tmp_path):
    write(tmp_path / "coco", info={"year": 2017}, licenses=[])
    (tmp_path / "coco" / "train2017" / "not-named.jpg").write_bytes(b"")
    opened = open_image_source(str(tmp_path / "coco"), "train2017")
    assert isinstance(opened, ImageSource)
    assert (opened.name, tuple(opened.class_names), len(opened)) == (
        "coco:coco:train2017",
        (),
        3,
    )
    found = [opened[i] for i in range(3)]
    assert [original.name for original in found] == ["c.png", "b.jpg", "sub/a.png"]
    assert [original.image[3, 2, 0] for original in found] == [2, 9, 30]
    assert {original.label for original in found} == {-1}
    assert [original.captions for original in found] == [
        ("",),
        ("nine, first", "nine, second"),
        ("Žába \N{FROG FACE}\n",),
    ]
    assert pickle.loads(pickle.dumps(opened))[1].captions == found[1].captions


def test_the_beginning_of_a_split_is_enough_where_there_is_but_one(tmp_path):
    for split in ("train2014", "val2014"):
        write(tmp_path, split)
    assert open_image_source(str(tmp_path)).name == f"coco:{tmp_path.name}:train2014"
    assert open_image_source(str(tmp_path), "val").name == f"coco:{tmp_path.name}:val2014"
    with pytest.raises(
        UserError,
        match=r"^split is 'test', but .*annotations has captions of 'train2014' and 'val2014', ",
    ):
        open_image_source(str(tmp_path), "test")
    write(tmp_path, "train2017")
    with pytest.raises(
        UserError,
        match=rf"^split is 'train', but {tmp_path}/annotations has captions of 'train2014' and "
        rf"'train2017', "
        "expected one of them$",
    ):
        open_image_source(str(tmp_path), "train")
    assert open_image_source(str(tmp_path), "train2014").name == f"coco:{tmp_path.name}:train2014"
    write(tmp_path, "train")
    assert open_image_source(str(tmp_path), "train").name == f"coco:{tmp_path.name}:train"


def test_other_annotations_make_no_data_set_of_captions(tmp_path):
    path = write(tmp_path)
    path.rename(path.with_name("instances_train2017.json"))
    (tmp_path / "train2017" / "sub" / "a.png").rename(tmp_path / "train2017" / "a.png")
    opened = open_image_source(str(tmp_path), "train2017")
    assert (opened.name, opened[0].captions) == (tmp_path.name, ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"images": [', r"is not JSON \(.*\), expected COCO's captions"),
        (b"[" * 100_000, r"is not JSON \(.*\), expected COCO's captions"),
        (
            '{"images": [{"id": 1, "file_name": "Žába"}]}'.encode("iso8859-2"),
            r"has the byte 0xae at offset 36, expected UTF-8",
        ),
        (b"[]", 'has no lists "images" and "annotations", expected COCO\'s captions'),
        (
            b'{"images": [], "annotations": {}}',
            'has no lists "images" and "annotations", expected COCO\'s captions',
        ),
        (b'{"images": [], "annotations": []}', "names no images, expected at least one"),
    ],
)
def test_a_file_that_is_not_a_list_of_annotations_is_named(tmp_path, content, said):
    path = write(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path} {said}$"):
        open_image_source(str(tmp_path))


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(open_image_source(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("images", "annotations", "said"),
    [
        (
            [*IMAGES, 3],
            CAPTIONS,
            r': images\[3\] has no number "id" and string "file_name", expected both',
        ),
        (
            [{"id": "9", "file_name": "b.jpg"}],
            [],
            r': images\[0\] has no number "id" and string "file_name".*',
        ),
        (
            [{"id": True, "file_name": "b.jpg"}],
            [],
            r': images\[0\] has no number "id" and string "file_name".*',
        ),
        ([{"id": 9}], [], r': images\[0\] has no number "id" and string "file_name".*'),
        (
            [*IMAGES, {"id": 2, "file_name": "d"}],
            CAPTIONS,
            r" has the image 2 twice \('c.png' and 'd'\), expected it once",
        ),
        (
            [*IMAGES, {"id": 3, "file_name": "b.jpg"}],
            CAPTIONS,
            " has 'b.jpg' as the images 9 and 3, expected it once",
        ),
        (
            IMAGES,
            [*CAPTIONS, None],
            r': annotations\[4\] has no numbers "id" and "image_id", expected both',
        ),
        (
            IMAGES,
            [{"id": 1, "caption": "a"}],
            r': annotations\[0\] has no numbers "id" and "image_id", expected both',
        ),
        (
            IMAGES,
            [*CAPTIONS, CAPTIONS[1]],
            r" has the annotation 5 twice \(again for image 9\), expected it once",
        ),
        (
            IMAGES,
            [{"id": 1, "image_id": 8, "caption": "a"}],
            ": annotation 1 is of image 8, expected one of its 3 images",
        ),
        (
            IMAGES,
            [{"id": 1, "image_id": 9, "bbox": [1, 2, 3, 4]}],
            r": annotation 1 of image 9 \('b.jpg'\) has no \"caption\", expected the annotations "
            r"of captions, not of "
            "another task",
        ),
        (
            IMAGES,
            [{"id": 1, "image_id": 9, "caption": ["a"]}],
            r": annotation 1 of image 9 \('b.jpg'\) has the caption \['a'\], expected a string",
        ),
        (
            IMAGES,
            [{"id": 1, "image_id": 9, "caption": "a\ud83d"}],
            r": annotation 1 of image 9 \('b.jpg'\) has the half character \\ud83d, expected "
            r"whole ones",
        ),
        (
            IMAGES,
            CAPTIONS[1:2],
            r" has 2 images without captions \(first: image 2, 'c.png'\), expected at least one "
            r"for each",
        ),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path, images, annotations, said):
    path = write(tmp_path, images=images, annotations=annotations)
    with pytest.raises(UserError, match=rf"^{path}{said}$"):
        open_image_source(str(tmp_path))


def test_images_that_are_not_there_are_named(tmp_path):
    path = write(tmp_path)
    (tmp_path / "outside.png").write_bytes((tmp_path / "train2017" / "c.png").read_bytes())

    def refused(said):
        with pytest.raises(UserError, match=rf"^{said}$"):
            open_image_source(str(tmp_path))

    (tmp_path / "train2017" / "sub" / "a.png").rename(tmp_path / "train2017" / "a.png")
    root = tmp_path / "train2017"
    refused(
        rf"{path} names 1 images that {root} lacks \(first: image 30, 'sub/a.png'\), expected "
        rf"them there"
    )
    for file in ("../outside.png", str(tmp_path / "outside.png"), "\ud800/a", "sub/\0"):
        write(tmp_path, images=[*IMAGES[:2], {"id": 30, "file_name": file}])
        refused(
            rf"{path} names 1 images that {root} lacks \(first: image 30, .*\), expected them there"
        )
    write(tmp_path)
    root.rename(tmp_path / "images")
    refused(rf"{root} can't be read \(No such file or directory\), expected the images of {path}")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    write(tmp_path)
    file = tmp_path / "train2017" / "b.jpg"
    file.write_bytes(file.read_bytes()[:50])
    opened = open_image_source(str(tmp_path))
    with pytest.raises(CorruptImage, match=rf"^{file} can't be decoded"):
        opened[1]


@pytest.mark.parametrize(("split", "count"), [("train", 80), ("val2017", 79)])
def test_real_coco_has_five_captions_an_image(split, count):
    source = SHARED / "data" / "coco-mini"
    if not source.is_dir():
        pytest.skip(f"no images at {source} (set UVIT_JAX_SHARED to the folder that holds data/)")
    opened = open_image_source(str(source), split)
    assert len(opened) == count
    found = [opened[i] for i in range(len(opened))]
    assert {len(original.captions) for original in found} == {5}
    ids = [int(original.name.removesuffix(".jpg")) for original in found]
    assert ids == sorted(ids)
    if split == "train":
        captions = found[ids.index(125870)].captions
        assert (
            captions[0] == "An airport filled with large passenger jets parked next to each other."
        )
        assert captions[1] == "A fleet of airplanes rest at their gates at the airport."
