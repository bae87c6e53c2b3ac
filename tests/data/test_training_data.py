import numpy as np
import pytest
from sklearn.datasets import load_digits

from uvit_jax.data.training_data import ArrayData, TrainingData, digits, load_built_in
from uvit_jax.errors import UserError


@pytest.fixture(scope="module")
def source():
    return load_built_in("digits")


def test_digits_are_scikit_learns_1797_with_their_labels(source):
    data = load_digits()
    assert len(source) == 1797
    assert source.images.shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal((source.images[..., 0] + 1) * 8, data.images)
    np.testing.assert_array_equal(source.labels, data.target)


def test_digits_use_all_17_grey_levels_from_minus_one_to_one(source):
    assert source.images.dtype == np.float32
    np.testing.assert_array_equal(np.unique(source.images), np.linspace(-1, 1, 17))


def test_a_batch_is_images_and_their_labels(source):
    indices = np.array([1234, 0, 1234, 1796])
    batch = source.read(indices, np.zeros(4, bool))
    assert batch.keys() == {"x", "label"}
    assert batch["x"].dtype == np.float32
    assert batch["x"].shape == (4, *source.sample_shape) == (4, 8, 8, 1)
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["x"], source.images[indices])
    np.testing.assert_array_equal(batch["label"], source.labels[indices])


def test_mirrored_examples_have_left_and_right_exchanged_and_the_source_stays_as_it_is():
    images = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    source = ArrayData("toy", images.copy(), np.arange(2), ["a", "b"])
    assert source.can_mirror
    x = source.read(np.array([0, 1, 0]), np.array([False, True, True]))["x"]
    np.testing.assert_array_equal(x, np.stack([images[0], images[1, :, ::-1], images[0, :, ::-1]]))
    np.testing.assert_array_equal(source.images, images)


def test_every_digit_has_a_name_and_examples(source):
    assert isinstance(source, TrainingData)
    assert source.name == "digits"
    assert list(source.class_names) == [str(digit) for digit in range(10)]
    assert source.num_classes == 10
    assert np.bincount(source.labels).min() > 170
    assert len(np.bincount(source.labels)) == 10


def test_shape_and_classes_are_the_arrays():
    source = ArrayData("toy", np.zeros((3, 2, 5, 4), np.float32), np.array([1, 0, 1]), ["a", "b"])
    assert (len(source), source.sample_shape, source.num_classes) == (3, (2, 5, 4), 2)


def test_an_unknown_source_is_refused_and_the_known_ones_named():
    with pytest.raises(UserError, match=r"^source is 'digit', expected one of 'digits'$"):
        load_built_in("digit")
    assert load_built_in("digits").name == digits().name


def test_only_the_fields_asked_for_are_there_and_draws_have_no_captions_to_pick(source):
    assert source.context_shape == ()
    indices, draws = np.array([3, 1]), np.array([2**63, 7], np.uint64)
    batch = source.read(indices, np.zeros(2, bool), draws, ("label",))
    assert batch.keys() == {"label"}
    np.testing.assert_array_equal(batch["label"], source.labels[indices])
    assert source.read(indices, np.zeros(2, bool), draws).keys() == {"x", "label"}


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_outside_the_classes_are_refused(label):
    said = rf"^'toy' has {label} among its labels, expected one in 0\.\.1 for each of its 2 images$"
    with pytest.raises(UserError, match=said):
        ArrayData("toy", np.zeros((2, 4, 4, 1), np.float32), np.array([0, label]), ["a", "b"])
