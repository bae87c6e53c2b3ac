"""Names of files as text that can be printed and stored, still different for different names."""

import os

from uvit_jax.data.names import printable


def test_ordinary_names_of_all_scripts_are_left_as_they_are():
    for name in ("cat", "Žába 1", "猫", "a b.c", "👩\u200d🔬", "a\u00a0b"):
        assert printable(name) == name


def test_names_that_are_not_utf8_or_not_one_line_are_escaped():
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("a\nb\tc\x1bd") == r"a\nb\tc\x1bd"
    assert printable("a\u2028b") == r"a\u2028b"
    for name in (b"caf\xe9", b"\xff\xfe", b"a\nb"):
        printable(os.fsdecode(name)).encode()


def test_different_names_stay_different():
    names = [
        os.fsdecode(b"caf\xe9"),
        r"caf\xe9",
        "café",
        os.fsdecode(b"caf\x85"),
        "caf\x85",
        r"caf\\xe9",
        "a\n",
        r"a\n",
    ]
    assert len(set(map(printable, names))) == len(names)
