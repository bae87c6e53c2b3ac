"""Files that appear whole or not at all, and what is said where they can't."""

import errno
import os

import pytest

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write


def test_the_bytes_appear_at_the_end_and_nothing_beside_them(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_write(path) as file:
        file.write(b"{}")
        assert not path.exists()
    assert path.read_bytes() == b"{}"
    assert os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "Disk quota exceeded")],
)
def test_a_full_disk_and_a_full_quota_are_one_sentence_and_leave_what_was_there(
    tmp_path, monkeypatch, code, said
):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(
            UserError, match=rf"^cannot write {path}: {said}; free some and start again$"
        ),
        atomic_write(path) as file,
    ):
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_another_fault_of_the_disk_is_not_taken_for_a_full_one(tmp_path):
    with pytest.raises(OSError, match="Input/output error"), atomic_write(tmp_path / "a.json"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not os.listdir(tmp_path)
