import pytest

from uvit_jax.checked_fields import typed, words


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (3, float | int, 3),
        (3, float | None, 3.0),
        (None, float | None, None),
        (True, bool, True),
        ([0.9, 1], tuple[float, float], (0.9, 1.0)),
        ((8, 16), int | tuple[int, int], (8, 16)),
        ([1, 2.5, 3], tuple[float, ...], (1.0, 2.5, 3.0)),
        ([], tuple[str, ...], ()),
        ([["a"], ["b", "c"]], tuple[tuple[str, ...], ...], (("a",), ("b", "c"))),
    ],
)
def test_a_value_takes_the_type_of_its_field(value, hint, expected):
    found = typed(value, hint)
    assert found == expected
    assert repr(found) == repr(expected)  # 3 equals 3.0, and True equals 1


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1, bool),
        ("3", int),
        (3.0, int),
        (None, int),
        ([1], tuple[int, int]),
        ([1, "a"], tuple[int, int]),
        ("ab", tuple[str, ...]),
    ],
)
def test_a_value_of_another_type_is_refused(value, hint):
    with pytest.raises(TypeError):
        typed(value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [(1e3, int, 1000), ([8.0, 16], int | tuple[int, int], (8, 16)), (1e3, float, 1e3)],
)
def test_a_whole_float_is_an_int_where_that_is_asked_for(value, hint, expected):
    assert repr(typed(value, hint, whole_floats=True)) == repr(expected)
    with pytest.raises(TypeError):
        typed(1.5, int, whole_floats=True)


def test_a_type_is_named_in_words():
    assert words(float | None) == "float or None"
    assert words(int | tuple[int, int]) == "int or two numbers"
