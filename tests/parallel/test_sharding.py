import re

import jax
import pytest
from jax.sharding import PartitionSpec

from tests.parallel.test_mesh import fake_mesh
from uvit_jax.parallel.sharding import LARGE, partition_spec, tree_shardings

RULES = (
    (r"qkv/kernel$", ("fsdp", None, "tensor", None)),
    (r"proj/kernel$", ("tensor", None, "fsdp")),
    (r"kernel$", ("fsdp", None)),
)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def test_the_first_rule_that_matches_path_and_rank_gives_the_spec():
    mesh = fake_mesh(1, 2, 2)
    specs = [
        partition_spec(path, shape, mesh, RULES)
        for path, shape in (
            ("attn/qkv/kernel", (64, 3, 4, 16)),
            ("attn/qkv/kernel", (64, 48)),
            ("ema/head/kernel", (64, 12)),
        )
    ]
    assert specs == [
        PartitionSpec("fsdp", None, "tensor", None),
        PartitionSpec("fsdp", None),
        PartitionSpec("fsdp", None),
    ]


def test_a_dimension_that_does_not_divide_stays_whole_and_the_others_are_split():
    mesh = fake_mesh(1, 2, 3)
    assert partition_spec("attn/qkv/kernel", (64, 3, 4, 16), mesh, RULES) == PartitionSpec(
        "fsdp", None, None, None
    )
    assert partition_spec("attn/proj/kernel", (6, 16, 63), mesh, RULES) == PartitionSpec(
        "tensor", None, None
    )
    assert partition_spec("head/kernel", (63, 12), mesh, RULES) == PartitionSpec(None, None)


def test_what_no_rule_names_or_what_has_another_rank_stays_whole():
    mesh = fake_mesh(2, 2, 2)
    tree = {"some/new/array": array(64, 64), "head/kernel": array(64, 64, 64)}
    assert [partition_spec(path, x.shape, mesh, RULES) for path, x in tree.items()] == [None, None]
    assert {s.spec for s in tree_shardings(tree, mesh, RULES).values()} == {PartitionSpec()}


@pytest.fixture
def warnings_of(caplog):
    def warnings(tree, mesh):
        caplog.clear()
        with caplog.at_level("WARNING", "uvit_jax"):
            tree_shardings(tree, mesh, RULES)
        return [record.getMessage() for record in caplog.records]

    return warnings


def test_large_arrays_that_no_rule_names_are_said_once(warnings_of):
    tree = {"a": {"new": array(256, LARGE // 256)}, "b": array(LARGE, 2), "kernel": array(LARGE, 2)}
    [message] = warnings_of(tree, fake_mesh(1, 2, 1))
    assert re.fullmatch(
        r"2 large arrays matched by no sharding rule, whole on every device: "
        rf"a/new \(256, {LARGE // 256}\), \.\.\.",
        message,
    )
    assert warnings_of(tree, fake_mesh(1, 2, 1)) == []


def test_small_arrays_vectors_and_meshes_that_split_nothing_need_no_rule(warnings_of):
    small = {"c": array(255, LARGE // 256), "vector": array(2 * LARGE)}
    assert warnings_of(small, fake_mesh(1, 2, 1)) == []
    assert warnings_of({"d": array(LARGE, 2)}, fake_mesh(4, 1, 1)) == []
