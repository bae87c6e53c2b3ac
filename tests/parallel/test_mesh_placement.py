"""Placement of a network over a mesh, without a compiled program."""

import jax
import pytest

from tests.parallel.test_mesh import fake_mesh
from uvit_jax.models.kernels import fused_attention
from uvit_jax.models.placement import ONE_DEVICE
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.mesh_placement import MeshPlacement
from uvit_jax.training.network import abstract_network


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1, 1, 1), (24, 6)), ((4, 2, 1), (3, 6)), ((1, 1, 2), (24, 3)), ((5, 1, 4), (5, 2))],
)
def test_a_device_has_its_own_examples_and_heads(sizes, expected):
    assert MeshPlacement(fake_mesh(*sizes), RULES).of_one_device(24, 6) == expected
    assert ONE_DEVICE.of_one_device(24, 6) == (24, 6)


def test_one_device_is_the_default_one():
    assert ONE_DEVICE.platform == jax.default_backend()
    with jax.default_device(jax.devices()[0]):
        assert ONE_DEVICE.platform == "cpu"
    with jax.default_device("gpu"):
        assert ONE_DEVICE.platform == "gpu"


def test_a_kernel_is_chosen_by_what_one_device_has(monkeypatch):
    # So that a batch which fills one GPU isn't taken to fill eight, nor a TPU asked for the memory
    # of all heads.
    asked = []
    monkeypatch.setattr(
        fused_attention, "resolve", lambda name, shape, *rest: asked.append(shape) or "xla"
    )
    monkeypatch.setattr(
        MeshPlacement, "of_one_device", lambda self, examples, heads: (examples // 4, heads // 2)
    )
    config = UViTConfig(image_size=8, in_channels=3, embed_dim=64, depth=1, num_heads=4)
    _, network, init = abstract_network(config, make_mesh(MeshConfig()))
    params = jax.eval_shape(init, jax.random.key(0))
    x, t = jax.ShapeDtypeStruct((8, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((8,), "float32")
    jax.eval_shape(lambda params, x, t: network(params, x, t, None), params, x, t)
    assert asked == [(2, 17, 3, 2, 16)]
