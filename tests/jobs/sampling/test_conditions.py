import numpy as np
import pytest

from tests.data.prepared_sets import captions_of, prepare
from tests.jobs.digits_config import KEEPING, UNCONDITIONAL, experiment
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import ArrayData, digits
from uvit_jax.errors import UserError
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.jobs.sampling.conditions import (
    Conditions,
    data_captions,
    data_labels,
    label_conditions,
)

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def classes_of(made, names):
    """The conditions of an experiment's `sample.labels`."""
    return label_conditions(made.sample.labels, made.num_real_classes, made.null_label, names)


def labels_of(made, source, count):
    """Labels drawn from a data set for an experiment."""
    return data_labels(source, count, made.sample.seed, made.num_real_classes, made.null_label)


def captions_for(made, source, count):
    """Captions drawn from a data set for an experiment."""
    return data_captions(source, count, made.sample, has_null=bool(made.diffusion.p_uncond))


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("all", 12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]),
        (" all ", 2, [0, 1]),
        ("0,3,7", 5, [0, 3, 7, 0, 3]),
        ("9", 3, [9, 9, 9]),
        (" 4 , 2 ", 2, [4, 2]),
    ],
)
def test_labels_are_the_classes_asked_for_in_turn(text, count, expected):
    conditions = classes_of(experiment(sample__labels=text), NAMES)
    labels = conditions.of(np.arange(count))
    assert conditions.labels
    assert conditions.null == 10
    assert labels.dtype == np.int32
    assert labels.tolist() == expected
    assert conditions.names_of(np.arange(count)) == [NAMES[label] for label in expected]


@pytest.mark.parametrize("text", ["cat", "0;3", "1.5", "", "0,,1", "0-9"])
def test_what_is_no_list_of_classes_is_refused(text):
    with pytest.raises(
        UserError, match=r"^config\.sample\.labels is .*, expected 'all' or classes as in '0,3,7'"
    ):
        classes_of(experiment(sample__labels=text), NAMES)


@pytest.mark.parametrize(
    ("text", "label"), [("0,10", 10), ("-1", -1), ("99999999999999999999", 10**20 - 1)]
)
def test_a_class_outside_the_table_and_the_empty_label_are_refused(text, label):
    with pytest.raises(
        UserError, match=rf"^config\.sample\.labels: label {label} is outside .* 0 to 9"
    ):
        classes_of(experiment(sample__labels=text), NAMES)


def test_an_unconditional_model_has_no_labels_to_sample():
    for text in ("all", ""):
        conditions = classes_of(experiment(**UNCONDITIONAL, sample__labels=text), ())
        assert conditions.of(np.arange(3)) is None
        assert conditions.names_of(np.arange(3)) is None
    with pytest.raises(
        UserError,
        match=r"^config\.sample\.labels is '0,3', expected 'all' for a model without labels",
    ):
        classes_of(experiment(**UNCONDITIONAL, sample__labels="0,3"), ())


def test_a_class_without_a_name_is_called_by_its_number():
    assert classes_of(experiment(sample__labels="0,3"), ["zero"]).names == ("zero", "3")


def test_prompts_come_from_a_file_one_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("a bus; and a car\n\n  zwei Hünde \n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.txt")) == ("a bus; and a car", "zwei Hünde")
    (tmp_path / "latin.txt").write_bytes("Hünde".encode("latin-1"))
    with pytest.raises(UserError, match="expected a file of text in UTF-8"):
        read_prompts(str(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match=r"gone\.txt', which can't be read"):
        read_prompts("gone.txt")
    with pytest.raises(UserError, match="expected texts between semicolons"):
        read_prompts(" ; ")


def skewed():
    """Ten classes, class k (k + 1) times as often as the first, in no order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 2 * np.arange(1, 11)))
    return ArrayData("skewed", np.zeros((len(labels), 8, 8, 1), np.float32), labels, NAMES)


def test_labels_of_the_data_come_as_often_as_in_the_data():
    source, count = skewed(), 20_000
    conditions = labels_of(experiment(), source, count)
    labels = conditions.of(np.arange(count))
    assert conditions.labels
    assert conditions.null == 10
    assert labels.dtype == np.int32
    found, expected = (
        np.bincount(labels, minlength=10) / count,
        np.bincount(source.labels) / len(source),
    )
    # Five standard deviations of a frequency.
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected / count))
    assert conditions.names_of(np.arange(50)) == [NAMES[label] for label in labels[:50]]


def test_the_label_of_a_sample_depends_on_the_seed_and_its_number_alone():
    many = labels_of(experiment(), digits(), 3000).of(np.arange(3000))
    for count in (1, 7, 1024, 1025, 2048):
        few = labels_of(experiment(), digits(), count)
        np.testing.assert_array_equal(few.of(np.arange(count)), many[:count])
    other = labels_of(experiment(sample__seed=1), digits(), 3000).of(np.arange(3000))
    assert 0.05 < np.mean(other == many) < 0.15  # as often as chance has it
    # And the last batch, filled up, has no others.
    assert set(labels_of(experiment(), digits(), 3).of(np.arange(64)).tolist()) <= set(
        many[:3].tolist()
    )


def test_labels_are_read_a_few_examples_at_a_time():
    class Watched(ArrayData):
        def read(self, indices, mirrored, draws=None, fields=None):
            assert len(indices) <= 1024
            assert fields == ["label"]
            return super().read(indices, mirrored, draws, fields)

    source = digits()
    watched = Watched(source.name, source.images, source.labels, source.class_names)
    assert len(labels_of(experiment(), watched, 2500).values) == 2500


def test_labels_of_a_prepared_data_set_are_its_own(tmp_path):
    _, labels = prepare(tmp_path, (40, 60))
    found = labels_of(experiment(), PreparedData(tmp_path), 500).of(np.arange(500))
    assert np.bincount(found).min() > 20
    assert set(found.tolist()) == set(labels.tolist())
    assert labels_of(experiment(**KEEPING), PreparedData(tmp_path), 5).null is None


@pytest.mark.parametrize("changes", [UNCONDITIONAL, {"model__num_classes": 5}])
def test_labels_of_other_data_than_the_models_are_refused(changes):
    with pytest.raises(
        UserError,
        match=r"^config\.sample\.labels is 'data', but 'digits' .* has 10 classes and the mod",
    ):
        labels_of(experiment(**changes), digits(), 5)


TEXT = {"model__num_classes": 0, "model__context_dim": 6, "model__context_length": 5}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A data set of 15 images, of 1 to 4 captions each."""
    folder = tmp_path_factory.mktemp("captioned")
    prepare(folder, context_dtype="float16", classes=0)
    return PreparedData(folder)


def picks(conditions, count):
    """(image, which of its captions) of each sample, as its states say."""
    states = conditions.of(np.arange(count))
    assert states.shape == (count, 5, 6)
    assert np.all(states == states[:, :1, :1])
    return [divmod(int(value), 10) for value in states[:, 0, 0].tolist()]


def test_a_samples_text_and_states_are_of_one_caption(captioned):
    conditions = captions_for(experiment(**TEXT), captioned, 40)
    assert not conditions.labels
    np.testing.assert_array_equal(conditions.null, captioned.empty_context)
    for name, (image, which) in zip(conditions.names, picks(conditions, 40), strict=True):
        assert name == captions_of(image)[which][1]


def test_every_image_comes_once_before_any_comes_again_and_each_caption_now_and_then(captioned):
    conditions = captions_for(experiment(**TEXT), captioned, 15 * 40)
    found = picks(conditions, 15 * 40)
    images = [image for image, _ in found]
    assert sorted(images[:15]) == list(range(15))
    assert images[:15] != list(range(15))
    assert images == images[:15] * 40
    for image in range(15):
        counts = np.bincount(
            [which for one, which in found if one == image], minlength=1 + image % 4
        )
        assert len(counts) == 1 + image % 4
        assert counts.min() >= 2


def test_the_caption_of_a_sample_depends_on_the_seed_and_its_number_alone(captioned):
    many = captions_for(experiment(**TEXT), captioned, 40)
    for count in (1, 14, 16, 39):
        few = captions_for(experiment(**TEXT), captioned, count)
        assert few.names == many.names[:count]
        np.testing.assert_array_equal(few.of(np.arange(count)), many.of(np.arange(count)))
    order = np.array([30, 2, 2, 17])
    np.testing.assert_array_equal(many.of(order), many.of(np.arange(40))[order])
    assert captions_for(experiment(**TEXT, sample__seed=1), captioned, 40).names != many.names


def test_captions_are_refused_where_there_are_none_and_with_a_negative_prompt(tmp_path, captioned):
    prepare(tmp_path, classes=0)
    with pytest.raises(
        UserError, match=r"holds no captions, expected a data set prepared with a text encoder"
    ):
        captions_for(experiment(**TEXT), PreparedData(tmp_path), 4)
    negative = experiment(**TEXT, sample__negative_prompt="blurry", sample__guidance_scale=1.0)
    with pytest.raises(
        UserError,
        match=r"^config\.sample\.negative_prompt is 'blurry', expected none for samples of",
    ):
        captions_for(negative, captioned, 4)
    assert (
        captions_for(
            experiment(**TEXT | {"diffusion__p_uncond": 0.0, "sample__guidance_scale": 0.0}),
            captioned,
            4,
        ).null
        is None
    )


@pytest.mark.parametrize(
    ("values", "texts", "count", "columns"),
    [
        (10, False, 100, 10),  # each class a column
        (3, False, 3, 3),
        (3, False, 24, 6),  # twice three classes side by side: 6 by 4
        (4, False, 100, 12),
        (2, True, 8, 4),
        (8, True, 8, 8),
        (9, True, 9, 3),  # too many to have columns of their own
        (1000, False, 100, 10),
        (0, False, 24, 5),
    ],
)
def test_a_grid_is_about_square_and_a_column_of_it_is_of_one_value(values, texts, count, columns):
    states = np.zeros((values, 1, 1)) if texts else np.arange(values)
    conditions = Conditions(states if values else None)
    assert conditions.columns(count) == columns
