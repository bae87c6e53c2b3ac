import pytest

from uvit_jax.errors import UserError
from uvit_jax.experiment.workdir import open_workdir


def test_a_workdir_is_made_with_its_parents_and_left_as_it_was(tmp_path):
    workdir = tmp_path / "a" / "b"
    open_workdir(workdir)
    (workdir / "kept").write_text("mine")
    open_workdir(workdir)
    assert [path.name for path in workdir.iterdir()] == ["kept"]


def test_a_workdir_that_cannot_be_made_is_refused_with_its_path(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(
            UserError, match=rf"^workdir {workdir} can't be written to \(.+\), expected a folder"
        ):
            open_workdir(workdir)
        with pytest.raises(UserError, match=rf"^config\.sample\.out {workdir} can't be written to"):
            open_workdir(workdir, "config.sample.out")
