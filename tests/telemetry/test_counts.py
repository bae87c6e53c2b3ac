from uvit_jax.errors import counted


def test_one_thing_is_not_many():
    assert [counted(count, "shard") for count in (0, 1, 2000)] == [
        "0 shards",
        "1 shard",
        "2,000 shards",
    ]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
