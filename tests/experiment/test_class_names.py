import sys

import pytest

from uvit_jax.errors import UserError
from uvit_jax.experiment.class_names import resolve_labels

ANIMALS = ("cat, house cat", "dog", "crane (bird)", "crane (machine)", "Great Dane", "7")


def labels(text: str, names=ANIMALS, classes: int = 6, source: str = "") -> list[int]:
    return resolve_labels(text, classes, names, source)[0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog", [1]),
        ("DOG, cat", [1, 0]),
        ("great  dane,1", [4, 1]),
        # One name with a comma, two names, and one of several names.
        ("cat, house cat", [0]),
        ("cat,house cat , dog", [0, 1]),
        ("house cat", [0]),
        ("crane (machine)", [3]),
        # A number is an id, whatever the classes are called.
        ("5", [5]),
    ],
)
def test_classes_are_asked_for_by_name_and_number(text, expected):
    assert labels(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dgo", "config.sample.labels is 'dgo', and no known class is called 'dgo', did you mean "),
        ("0, dane", "and no known class is called 'dane', did you mean 'great dane'?"),
        ("horse", "expected 'all' or classes as in '0,3,7', or by name as in 'cat'"),
        ("crane", "'crane' is a name of the classes 2 (crane (bird)) and 3 (crane (machine)): exp"),
        ("dog, 7", "config.sample.labels: label 7 is outside the table, expected 0 to 5"),
    ],
)
def test_an_unknown_or_ambiguous_name_is_told_with_what_is_there(text, sentence):
    with pytest.raises(UserError) as refused:
        labels(text)
    assert sentence in str(refused.value)


def test_classes_without_names_are_asked_for_by_number_alone():
    assert labels("0,2", ()) == [0, 2]
    with pytest.raises(UserError, match=r"expected 'all' or classes as in '0,3,7'$"):
        labels("cat", ())


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((), id="a config alone"),
        pytest.param(tuple(f"n{i:08}" for i in range(1000)), id="folders of WordNet ids"),
    ],
)
def test_imagenets_classes_have_names(names):
    pytest.importorskip("tensorflow_datasets")
    asked = "Golden Retriever, 3, tench, Tinca tinca"
    assert labels(asked, names, 1000, "data/imagenet256") == [207, 3, 0]
    with pytest.raises(UserError, match=r"134 \(crane \(bird\)\) and 517 \(crane \(machine\)\)"):
        labels("crane", names, 1000, "data/imagenet256")


def test_other_thousand_classes_do_not_take_imagenets_names():
    with pytest.raises(UserError, match="no known class is called 'tench'"):
        labels("tench", (), 1000, "data/mine")


def test_the_names_of_imagenet_need_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.datasets.siscore.labels", None)
    with pytest.raises(UserError, match=r"^config\.sample\.labels is 'tench', .*\[tfds\]'$"):
        labels("tench", (), 1000, "data/imagenet256")
    assert labels("0", (), 1000, "data/imagenet256") == [0]
