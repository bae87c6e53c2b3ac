import resource

from tests.data.prepared_sets import prepare
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.records import ExampleReader


def test_the_shard_that_was_used_least_recently_makes_room(tmp_path, monkeypatch):
    prepare(tmp_path, sizes=(1, 1, 1))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4, 4))  # half of them: two shards
    records = ExampleReader(tmp_path, Manifest.load(tmp_path)).records
    for shard in (0, 1, 0, 2):
        records.record(shard, 0)
    assert sorted(records._open) == [0, 2]
