import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated


def test_one_sharding_serves_a_whole_tree_and_a_tree_of_them_leaf_by_leaf():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tree = {"a": np.arange(4.0, dtype=np.float32), "b": [np.arange(2), None]}
    placed = place(tree, replicated(mesh))
    assert placed["a"].sharding == placed["b"][0].sharding == replicated(mesh)
    assert placed["b"][1] is None
    both = place([tree["a"], tree["b"][0]], [batch_sharding(mesh), replicated(mesh)])
    assert [array.sharding for array in both] == [batch_sharding(mesh), replicated(mesh)]
    np.testing.assert_array_equal(both[0], tree["a"])


def test_no_process_looks_further_than_its_own_devices(monkeypatch):
    """A stand-in for several hosts; test_hosts.py has two real processes."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec())
    monkeypatch.setattr(NamedSharding, "is_fully_addressable", property(lambda self: False))
    monkeypatch.setattr(jax, "device_put", None)
    np.testing.assert_array_equal(place(jnp.arange(3), sharding).addressable_data(0), [0, 1, 2])


def test_what_is_fetched_is_numpys():
    for array in (np.arange(3), jnp.arange(3), jnp.arange(3, dtype=jnp.bfloat16)):
        fetched = fetch(array)
        assert isinstance(fetched, np.ndarray)
        assert fetched.dtype == array.dtype
        np.testing.assert_array_equal(fetched, np.arange(3))
