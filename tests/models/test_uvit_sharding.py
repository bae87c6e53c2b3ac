import importlib
import math
import re

import jax
import pytest
from jax.sharding import PartitionSpec

from tests.parallel.test_mesh import fake_mesh
from uvit_jax.experiment.config import resolve
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.network import abstract_network
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.optimizer_config import OptimizerConfig
from uvit_jax.training.state import abstract

SMALL = {"image_size": 8, "in_channels": 3, "embed_dim": 64, "depth": 3, "num_heads": 4}
LABELS, TEXT = {"num_classes": 1001}, {"context_dim": 12, "context_length": 5}


def state_of(mesh, **fields):
    init = abstract_network(UViTConfig(**SMALL | fields))[2]
    return abstract(init, make_optimizer(OptimizerConfig(grad_clip=1.0), 10), mesh)


def by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def state():
    return state_of(fake_mesh(2, 2, 2), **LABELS, qkv_bias=True)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("in_blocks/0/attn/qkv/kernel", (64, 3, 4, 16), ("fsdp", None, "tensor", None)),
        ("in_blocks/0/attn/qkv/bias", (3, 4, 16), (None, "tensor", None)),
        ("mid_block/attn/proj/kernel", (4, 16, 64), ("tensor", None, "fsdp")),
        ("mid_block/mlp/fc1/kernel", (64, 256), ("fsdp", "tensor")),
        ("mid_block/mlp/fc1/bias", (256,), ("tensor",)),
        ("mid_block/mlp/fc2/kernel", (256, 64), ("tensor", "fsdp")),
        ("out_blocks/0/skip/kernel", (2, 64, 64), (None, "fsdp", "tensor")),
        ("label_embed/embedding", (1001, 64), (None, "fsdp")),
        ("pos_embed", (18, 64), (None, "fsdp")),
        ("head/kernel", (64, 12), ("fsdp", None)),
        ("patch_embed/proj/kernel", (12, 64), (None, "fsdp")),
        # 3 channels are no multiple of 2, and vectors stay whole.
        ("conv_after/kernel", (3, 3, 3, 3), (None, None, None, None)),
        ("mid_block/attn/proj/bias", (64,), ()),
        ("mid_block/norm1/norm/scale", (64,), ()),
    ],
)
def test_each_parameter_of_a_u_vit_is_split_as_the_table_says(state, path, shape, spec):
    leaf = by_path(state.params)[path]
    assert leaf.shape == shape
    assert leaf.sharding.spec == PartitionSpec(*spec)


def test_a_block_on_four_devices_holds_a_quarter_of_every_kernel(state):
    kernels = {
        path: leaf
        for path, leaf in by_path(state.params).items()
        if re.search("block.*kernel", path)
    }
    assert len(kernels) == 3 * 4 + 1
    for path, leaf in kernels.items():
        assert 4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) == math.prod(leaf.shape), path


def test_moments_and_average_are_sharded_as_their_parameters_are(state):
    params = by_path(state.params)
    assert {path: leaf.sharding for path, leaf in by_path(state.ema).items()} == {
        path: leaf.sharding for path, leaf in params.items()
    }
    moments = {
        path: leaf
        for path, leaf in by_path(state.opt_state).items()
        if re.search("/(mu|nu)/", path)
    }
    assert len(moments) == 2 * len(params)
    for path, leaf in moments.items():
        param = params[re.split("/(?:mu|nu)/", path)[1]]
        assert (leaf.shape, leaf.sharding) == (param.shape, param.sharding), path


def test_counters_are_whole_everywhere(state):
    counters = [leaf for leaf in jax.tree.leaves((state.step, state.opt_state)) if leaf.shape == ()]
    assert len(counters) >= 2
    assert all(leaf.sharding.spec == PartitionSpec() for leaf in counters)


@pytest.mark.parametrize(
    "fields",
    [
        TEXT | {"skip": "linear_then_add", "conv": "before"},
        LABELS | {"time": "adaln", "time_mlp": True},
    ],
    ids=["text_skip_linear_conv_before", "adaln_time_mlp"],
)
def test_every_large_parameter_of_every_ablation_is_split_over_fsdp(fields):
    state = state_of(fake_mesh(1, 4, 1), **fields)
    large = {
        path: leaf for path, leaf in by_path(state).items() if math.prod(leaf.shape) >= 64 * 12
    }
    assert len(large) > 50
    for path, leaf in large.items():
        assert 4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) == math.prod(leaf.shape), path


@pytest.mark.parametrize("name", ["imagenet512", "mscoco256"])
def test_fsdp_over_eight_devices_leaves_each_an_eighth_of_a_paper_model(name):
    config = resolve(importlib.import_module(f"configs.{name}").get_config())
    mesh = fake_mesh(1, 8, 1)
    state = abstract(abstract_network(config.model)[2], make_optimizer(config.optimizer, 10), mesh)
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    part = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
    assert part <= 1.1 / 8 * whole


@pytest.mark.parametrize("name", ["imagenet512", "mscoco256"])
def test_the_rules_name_every_large_array_of_a_paper_model(name, caplog):
    config = resolve(importlib.import_module(f"configs.{name}").get_config())
    init, optimizer = abstract_network(config.model)[2], make_optimizer(config.optimizer, 10)
    with caplog.at_level("WARNING", "uvit_jax"):
        abstract(init, optimizer, fake_mesh(1, 8, 1))
    assert not caplog.records
