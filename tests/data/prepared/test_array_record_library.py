"""Windows, where there is neither ArrayRecord nor the module `resource`."""

import re
import sys

import pytest

from tests.jobs.runs import ROOT
from uvit_jax.data.prepared.shard_reader import ShardReader
from uvit_jax.errors import UserError


def test_a_missing_array_record_is_named_where_shards_are_opened(tmp_path, monkeypatch):
    for name in ("array_record.python.array_record_module", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError,
        match=r"^prepared data is stored as ArrayRecord, whose package can't be loaded \(.*\): "
        r"expected Linux, macOS, or WSL on Windows$",
    ):
        ShardReader(tmp_path, [], record_bytes=1)


def test_no_module_imports_what_windows_lacks_when_it_is_imported():
    lacking = re.compile(r"^(import|from) (array_record|resource|fcntl|pwd|grp)\b", re.M)
    files = (ROOT / "uvit_jax").rglob("*.py")
    assert [str(path) for path in files if lacking.search(path.read_text())] == []
