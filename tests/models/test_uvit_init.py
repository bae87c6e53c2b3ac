"""Initial weights of a U-ViT."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.tiny_uvit import FAST_COMPILE, TINY
from uvit_jax.models.init_keys import InitKeys
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.network import abstract_network


@pytest.fixture(scope="module")
def fresh():
    """Fresh parameters by path, wide enough to see a distribution in each."""
    config = UViTConfig(
        image_size=4,
        in_channels=24,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=50,
        time_mlp=True,
    )
    params = jax.jit(abstract_network(config)[2], compiler_options=FAST_COMPILE)(
        jax.random.key(0, impl="rbg")
    )
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_linear_layers_and_positions_start_normal_with_deviation_002_and_labels_with_1(fresh):
    normal = [
        path
        for path in fresh
        if path.endswith("kernel") and not re.search("patch_embed|conv", path)
    ]
    assert len(normal) == 7
    for path in [*normal, "label_embed/embedding", "pos_embed"]:
        std, values = 1.0 if path == "label_embed/embedding" else 0.02, fresh[path]
        tolerance = 4 / np.sqrt(values.size)  # four standard errors of a mean
        assert values.mean() / std == pytest.approx(0, abs=tolerance), path
        assert values.std() / std == pytest.approx(1, abs=tolerance), path


def test_convolutions_start_uniform_within_the_inverse_root_of_their_inputs(fresh):
    for path, fan_in in (("patch_embed/proj", 2 * 2 * 24), ("conv_after", 9 * 24)):
        bound = 1 / np.sqrt(fan_in)
        for array in (fresh[f"{path}/kernel"], fresh[f"{path}/bias"]):
            assert 0.8 * bound < np.abs(array).max() <= bound, path
        assert fresh[f"{path}/kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_biases_start_at_0_and_norms_as_the_identity(fresh):
    biases = [
        path for path in fresh if path.endswith("bias") and not re.search("patch_embed|conv", path)
    ]
    assert len(biases) == 9
    assert not any(np.any(fresh[path]) for path in biases)
    scales = [path for path in fresh if path.endswith("scale")]
    assert len(scales) == 3
    assert all(np.all(fresh[path] == 1) for path in scales)


def test_the_same_key_gives_the_same_parameters_scanned_or_not():
    programs = set()
    for scan, remat in ((False, "none"), (True, "full")):
        config = UViTConfig(**TINY | {"depth": 3}, scan_blocks=scan, remat=remat)
        programs.add(str(jax.make_jaxpr(abstract_network(config)[2])(jax.random.key(0))))
    assert len(programs) == 1


def test_the_keys_of_the_weights_are_those_of_nnx_rngs():
    key = jax.random.key(3, impl="rbg")
    ours, theirs = InitKeys(key), nnx.Rngs(params=key)
    for _ in range(3):
        assert ours.params() == theirs.params()
    assert InitKeys(5).params() == nnx.Rngs(params=5).params()


def test_the_keys_are_counted_outside_the_program():
    draw = lambda key: [keys.params() for keys in [InitKeys(key)] for _ in range(3)]  # noqa: E731
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(draw)(jax.random.key(3)).eqns]
    assert names.count("random_fold_in") == 3
    assert "add" not in names
