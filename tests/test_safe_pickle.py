"""Unpickling by an allow-list: what is outside it is neither called nor changed."""

import collections
import io
import pickle

import pytest

from uvit_jax.safe_pickle import AllowListUnpickler


class Taking:
    """A class whose objects take a state."""

    state = None

    def __setstate__(self, state):
        self.state = state


class Plain:
    """A class whose objects take none."""


LIST = {("a", "Taking"): Taking, ("a", "Plain"): Plain, ("a", "dict"): collections.OrderedDict}


def load(data: bytes):
    def refuse(name):
        return ValueError(f"refused {name}")

    return AllowListUnpickler(io.BytesIO(data), lambda *name: LIST.get(name), refuse).load()


def test_a_name_outside_the_list_is_refused_and_not_imported():
    with pytest.raises(ValueError, match=r"refused os\.system"):
        load(b"cos\nsystem\n(S'exit 1'\ntR.")


def test_names_on_the_stack_are_refused_as_those_in_lines_are():
    data = pickle.SHORT_BINUNICODE + b"\x02os" + pickle.SHORT_BINUNICODE + b"\x06system"
    with pytest.raises(ValueError, match=r"refused os\.system"):
        load(b"\x80\x04" + data + pickle.STACK_GLOBAL + b".")


def test_an_object_that_takes_a_state_is_given_it_and_another_is_left_alone():
    assert load(b"ca\nTaking\n(tRK\x05b.").state == 5
    plain = load(b"ca\nPlain\n(tR}S'x'\nK\x01sb.")
    assert not vars(plain)


@pytest.mark.parametrize("name", ["Taking", "Plain", "dict"])
def test_a_class_on_the_list_is_never_changed(name):
    kind = LIST["a", name]
    before = dict(vars(kind))
    assert load(f"ca\n{name}\n".encode() + b"(N}S'x'\nK\x01stb.") is kind
    assert dict(vars(kind)) == before


def test_a_name_that_is_cut_short_is_not_taken_for_a_shorter_one():
    with pytest.raises(EOFError):
        load(b"ca\nPlai")


def test_a_length_beyond_the_file_allocates_nothing():
    with pytest.raises(KeyError):
        load(b"\x80\x05" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little") + b".")
    far = b"K\x01" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff"
    assert load(far + pickle.LONG_BINGET + b"\xff\xff\xff\xff.") == 1
