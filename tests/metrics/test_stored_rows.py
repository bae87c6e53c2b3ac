import pathlib

import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics.stored_rows import StoredRows

ROWS = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)


def test_rows_come_back_as_they_were_appended(tmp_path):
    rows = StoredRows(tmp_path / "made" / "a.rows", (3,), np.float32)
    assert rows.read().shape == (0, 3)
    for part in (ROWS[:1], ROWS[1:1], ROWS[1:13], ROWS[13:]):
        rows.append(part)
    assert rows.count == 20
    found = rows.read()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)
    rows.close()
    assert rows.path.stat().st_size == 20 * 12


def test_images_are_rows_too_in_any_memory_order(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(5, 4, 6, 3), dtype=np.uint8)
    rows = StoredRows(tmp_path / "a.rows", (6, 4, 3), np.uint8)
    rows.append(images.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(rows.read(), images.transpose(0, 2, 1, 3))


def test_what_was_appended_after_the_count_noted_is_forgotten(tmp_path):
    first = StoredRows(tmp_path / "a.rows", (3,), np.float32)
    first.append(ROWS[:7])
    first.sync()
    first.append(1e9 + ROWS[7:12])
    first.close()
    with (tmp_path / "a.rows").open("ab") as file:
        file.write(b"half")  # of a row that a kill cut short
    again = StoredRows(tmp_path / "a.rows", (3,), np.float32, count=7)
    again.append(ROWS[7:])
    np.testing.assert_array_equal(again.read(), ROWS)
    again.close()
    np.testing.assert_array_equal(
        StoredRows(tmp_path / "a.rows", (3,), np.float32, count=20).read(), ROWS
    )


def test_a_file_cut_short_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "a.rows"
    path.write_bytes(ROWS[:7].tobytes()[:-1])
    with pytest.raises(
        UserError,
        match=r"a\.rows has 6 rows, expected at least 7: delete its folder to start again$",
    ):
        StoredRows(path, (3,), np.float32, count=7)
    assert path.stat().st_size == 7 * 12 - 1
    with pytest.raises(UserError, match=r"gone\.rows has 0 rows, expected at least 1"):
        StoredRows(tmp_path / "gone.rows", (3,), np.float32, count=1)
    assert not (tmp_path / "gone.rows").exists()


def test_rows_read_do_not_stand_in_memory(tmp_path):
    rows = StoredRows(tmp_path / "a.rows", (3,), np.float32)
    rows.append(ROWS)
    assert isinstance(rows.read(), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows.read()[0] = 1


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.rows", tmp_path):
        with pytest.raises(UserError, match=r"^cannot write .*; expected a writable folder$"):
            StoredRows(path, (3,), np.float32)


@pytest.mark.skipif(
    not pathlib.Path("/dev/full").exists(), reason="no /dev/full, which is always full"
)
@pytest.mark.parametrize("moment", ["append", "sync", "read"])
def test_a_full_disk_is_one_sentence_whenever_it_is_found_out(tmp_path, moment):
    rows = StoredRows(tmp_path / "a.rows", (3,), np.float32)
    rows.close()
    with open("/dev/full", "r+b", buffering=0 if moment == "append" else 99_999) as full:
        rows._file = full
        if moment != "append":
            rows.append(ROWS)
        with pytest.raises(
            UserError,
            match=r"^cannot write \S+a\.rows: No space left on device; free some and start",
        ):
            getattr(rows, moment)(*[ROWS] if moment == "append" else [])
        getattr(full, "raw", full).close()  # or what it holds is written once more
