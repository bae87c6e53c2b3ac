import numpy as np
import pytest

from tests.jobs.digits_config import UNCONDITIONAL, experiment
from uvit_jax.errors import UserError
from uvit_jax.jobs.conditions import label_conditions, read_prompts

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


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
    conditions = label_conditions(experiment(sample__labels=text), NAMES)
    labels = conditions.of(np.arange(count))
    assert conditions.labels
    assert conditions.null == 10
    assert labels.dtype == np.int32
    assert labels.tolist() == expected
    assert conditions.names_of(np.arange(count)) == [NAMES[label] for label in expected]


@pytest.mark.parametrize("text", ["cat", "0;3", "1.5", "", "0,,1", "0-9"])
def test_what_is_no_list_of_classes_is_refused(text):
    with pytest.raises(UserError, match=r"^config\.sample\.labels is .*, expected 'all' or classes as in '0,3,7'"):
        label_conditions(experiment(sample__labels=text), NAMES)


@pytest.mark.parametrize(("text", "label"), [("0,10", 10), ("-1", -1), ("99999999999999999999", 10**20 - 1)])
def test_a_class_outside_the_table_and_the_empty_label_are_refused(text, label):
    with pytest.raises(UserError, match=rf"^config\.sample\.labels: label {label} is outside .* 0 to 9"):
        label_conditions(experiment(sample__labels=text), NAMES)


def test_an_unconditional_model_has_no_labels_to_sample():
    for text in ("all", ""):
        conditions = label_conditions(experiment(**UNCONDITIONAL, sample__labels=text), ())
        assert conditions.of(np.arange(3)) is None
        assert conditions.names_of(np.arange(3)) is None
    with pytest.raises(UserError, match=r"^config\.sample\.labels is '0,3', expected 'all' for a model without labels"):
        label_conditions(experiment(**UNCONDITIONAL, sample__labels="0,3"), ())


def test_a_class_without_a_name_is_called_by_its_number():
    assert label_conditions(experiment(sample__labels="0,3"), ["zero"]).names == ("zero", "3")


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
