import json
import sys

import pytest

from uvit_jax.errors import UserError
from uvit_jax.extras import import_extra


def test_an_extra_that_is_installed_is_its_module():
    assert import_extra("json", "tfds", "source is 'x'") is json


def test_a_missing_extra_ends_in_one_sentence_with_the_one_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # as if it weren't installed
    with pytest.raises(
        UserError,
        match=r"^source is 'tfds:mnist', which needs tensorflow_datasets \(.*\): "
        r"pip install 'uvit-jax\[tfds\]'$",
    ):
        import_extra("tensorflow_datasets", "tfds", "source is 'tfds:mnist'")


def test_a_module_that_an_extra_lacks_is_named(monkeypatch, tmp_path):
    (tmp_path / "needs_another.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"\(No module named 'no_such_module'\): pip install"):
        import_extra("needs_another", "tfds", "source is 'x'")
