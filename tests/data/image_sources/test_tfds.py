"""Tiny TFDS data sets, made by TFDS itself in processes of its own, without TensorFlow."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from uvit_jax.data.image_sources.image_source import CorruptImage, ImageSource, listing_sha256
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError

pytest.importorskip(
    "tensorflow_datasets", reason="TFDS is not installed (pip install tensorflow-datasets)"
)
pytest.importorskip("array_record", reason="array_record is not installed")

MAKE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def picture(i, channels=3, format="PNG"):
    array = np.random.default_rng(i).integers(0, 256, (6, 5 + i, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if channels == 1 else array).save(file, format)
    file.seek(0)
    return file

class TinyBase(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 8), "test": self._generate_examples(8, 10)}

class TinyPets(TinyBase):
    FEATURES = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        "mask": tfds.features.Image(shape=(None, None, 1)),
    }
    def _generate_examples(self, first, last):
        for i in range(first, last):
            image = io.BytesIO(b"no image") if i == 9 else picture(i)
            yield i, {"image": image, "label": -1 if i == 8 else i % 2, "mask": picture(i, 1)}

class TinyGrey(TinyBase):
    FEATURES = {"image": tfds.features.Image(shape=(None, None, 1))}
    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"image": picture(i, 1)}

class TinySound(TinyBase):
    FEATURES = {"loudness": tfds.features.Scalar(np.float32)}
    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"loudness": float(i)}

class TinyArrays(TinyBase):
    FEATURES = {"image": tfds.features.Image()}
    def _generate_examples(self, first, last):
        yield 0, {"image": np.zeros((4, 4, 3), np.uint8)}  # TFDS needs TensorFlow to encode arrays
"""

PREPARE = """
for builder in (TinyPets, TinyGrey, TinySound):
    builder(data_dir=sys.argv[1]).download_and_prepare(file_format="array_record")
assert "tensorflow" not in sys.modules
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    run(MAKE + PREPARE, folder)
    return folder


def image(i: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (6, 5 + i, channels), np.uint8)


def test_images_and_labels_are_those_that_were_written(data_dir):
    opened = open_image_source("tfds:tiny_pets", "train", data_dir)
    assert isinstance(opened, ImageSource)
    assert (opened.name, len(opened), tuple(opened.class_names)) == (
        "tfds:tiny_pets",
        8,
        ("cat", "dog"),
    )
    # TFDS shuffles what it writes; the pictures' widths tell which is which.
    found = {original.image.shape[1] - 5: original for original in (opened[i] for i in range(8))}
    assert sorted(found) == list(range(8))
    for i, original in found.items():
        np.testing.assert_array_equal(original.image, image(i))
        assert (original.label, original.captions) == (i % 2, ())
    assert opened[3].name == "train[3]"


def test_a_listing_is_of_the_records_that_a_split_takes(data_dir):
    def listing(source: str, split: str) -> str:
        return listing_sha256(open_image_source(source, split, data_dir))

    half = listing("tfds:tiny_pets", "train[:50%]")
    assert half == listing("tfds:tiny_pets:1.0.0", "train[:4]")
    others = [
        ("tfds:tiny_pets", "train"),
        ("tfds:tiny_pets", "train[4:]"),
        ("tfds:tiny_grey", "train[:4]"),
    ]
    assert len({half, *(listing(*other) for other in others)}) == 4


def test_splits_and_slices_are_tfdss(data_dir):
    assert len(open_image_source("tfds:tiny_pets:1.0.0", "test", data_dir)) == 2
    half = open_image_source("tfds:tiny_pets", "train[:50%]", data_dir)
    assert len(half) == 4
    assert half[1].name == "train[:50%][1]"
    with pytest.raises(IndexError):
        half[4]
    with pytest.raises(
        UserError,
        match=r"^split is 'val', which TFDS can't open .*, expected one of 'test', 'train'$",
    ):
        open_image_source("tfds:tiny_pets", "val", data_dir)


def test_a_bad_image_is_corrupt_and_a_hidden_label_is_none(data_dir):
    opened = open_image_source("tfds:tiny_pets", "test", data_dir)
    good, faults = [], []
    for i in range(2):
        try:
            good.append(opened[i])
        except CorruptImage as error:
            faults.append(str(error))
    assert [original.label for original in good] == [-1]
    (fault,) = faults
    bad = "test[1]" if good[0].name == "test[0]" else "test[0]"
    assert fault.startswith(f"{bad} of tfds:tiny_pets starts with the bytes b'no image'")


def test_grey_pictures_keep_their_one_channel_and_need_no_label(data_dir):
    opened = open_image_source("tfds:tiny_grey", "train", data_dir)
    assert tuple(opened.class_names) == ()
    first = opened[0]
    np.testing.assert_array_equal(first.image, image(first.image.shape[1] - 5, 1))
    assert first.label == -1


def test_it_travels_to_other_processes_after_use(data_dir):
    opened = open_image_source("tfds:tiny_pets", "train", data_dir)
    first = opened[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened))[0].image, first.image)


def test_reading_needs_no_tensorflow(data_dir):
    code = """
        import sys
        from uvit_jax.data.image_sources.registry import open_image_source
        assert "tensorflow_datasets" not in sys.modules, "TFDS is slow to import"
        print(open_image_source("tfds:tiny_pets", "train", sys.argv[1])[0].image.shape[0])
        assert "tensorflow" not in sys.modules
        """
    assert run(textwrap.dedent(code), data_dir).split()[-1] == "6"


def test_a_build_of_tfrecords_is_refused_with_the_command_that_converts_it(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/tiny_pets", tmp_path / "tiny_pets")
    info = tmp_path / "tiny_pets" / "1.0.0" / "dataset_info.json"
    values = json.loads(info.read_text())
    values["fileFormat"] = "tfrecord"
    info.write_text(json.dumps(values))
    expected = (
        rf"1\.0\.0 holds tfrecord, expected array_record: .* tfds convert_format "
        rf"--dataset_version_dir={info.parent}"
    )
    with pytest.raises(UserError, match=expected):
        open_image_source("tfds:tiny_pets", "train", str(tmp_path))


def test_what_tfds_does_not_know_is_refused(data_dir):
    with pytest.raises(
        UserError, match=r"^source is 'tfds:no_such_set', which TFDS can't open \(.*no_such_set"
    ):
        open_image_source("tfds:no_such_set", "train", data_dir)
    with pytest.raises(UserError, match=r"^source is 'tfds:', which TFDS can't open"):
        open_image_source("tfds:", "train", data_dir)


def test_a_data_set_without_images_is_refused(data_dir):
    with pytest.raises(
        UserError,
        match=r"^tfds:tiny_sound has the features .*loudness.*, expected an 'image' of 8 bits",
    ):
        open_image_source("tfds:tiny_sound", "train", data_dir)


def test_the_refusal_says_what_must_be_downloaded_by_hand(tmp_path):
    with pytest.raises(
        UserError,
        match=r"imagenet2012/.* must be downloaded by hand; TFDS says: .*ILSVRC2012_img_train",
    ):
        open_image_source("tfds:imagenet2012", "train", str(tmp_path))


def test_a_missing_tfds_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        UserError,
        match=r"^source is 'tfds:cifar10', which needs .*: pip install 'uvit-jax\[tfds\]'$",
    ):
        open_image_source("tfds:cifar10")


PREPARE_HERE = """
from uvit_jax.data.image_sources.registry import open_image_source
from uvit_jax.errors import UserError
sys.modules["tensorflow"] = None  # not installed, wherever the test runs
if sys.argv[2] == "offline":
    import requests
    def generate(self, first, last):
        raise requests.exceptions.ConnectionError("no route")
        yield
    TinyGrey._generate_examples = generate
try:
    print("made", len(open_image_source(sys.argv[3], "train", sys.argv[1])))
except UserError as error:
    print(error)
"""


def test_what_is_not_there_yet_is_made_as_array_record(tmp_path):
    assert (
        run(MAKE + PREPARE_HERE, str(tmp_path), "online", "tfds:tiny_pets").splitlines()[-1]
        == "made 8"
    )
    assert list(pathlib.Path(tmp_path).glob("tiny_pets/1.0.0/*train.array_record*"))


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        (
            "online",
            "tiny_arrays",
            "preparing it needs tensorflow, which isn't installed: run tfds build tiny_arrays ",
        ),
        (
            "offline",
            "tiny_grey",
            "can't be downloaded (no connection), expected a network, or the data set as tfds buil",
        ),
    ],
)
def test_what_cannot_be_made_here_is_refused_with_the_command_that_makes_it(
    tmp_path, network, name, message
):
    last = run(MAKE + PREPARE_HERE, str(tmp_path), network, f"tfds:{name}").splitlines()[-1]
    assert last.startswith(f"tfds:{name} isn't in {tmp_path}/{name}/1.0.0 and ")
    assert message in last


def flipped(data: bytes) -> bytes:
    return data[:1000] + bytes(byte ^ 255 for byte in data[1000:2000]) + data[2000:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[: len(data) // 2]], ids=["altered", "cut short"]
)
def test_a_damaged_record_is_named(data_dir, tmp_path, damage):
    shutil.copytree(f"{data_dir}/tiny_pets", tmp_path / "tiny_pets")
    (shard,) = (tmp_path / "tiny_pets" / "1.0.0").glob("*train.array_record*")
    shard.write_bytes(damage(shard.read_bytes()))
    opened = open_image_source("tfds:tiny_pets", "train", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^train\[\d\] of tfds:tiny_pets can't be read \(.+\)[^\n]*$"
    ) as caught:
        list(map(opened.__getitem__, range(8)))
    assert not isinstance(caught.value, CorruptImage)
